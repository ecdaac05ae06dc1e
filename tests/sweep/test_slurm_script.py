"""The batch script for Slurm, run by bash with stand-ins for Slurm's programs."""

import os
import shlex
import subprocess
import sys

import pytest

from segjax.cli.main import main
from segjax.errors import UserError
from segjax.sweep import grids, slurm, slurm_script, status
from segjax.sweep.slurm_script import Options, format_array, render, replace_array
from segjax.system.files import write_whole
from support import toy_grid
from support.errors import command_refusal

# Stand-in for one of Slurm's programs: logs its arguments; `srun` executes the file `do`.
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "{folder}/called"
case $(basename "$0") in
  scontrol) [[ $1 = show ]] && echo "JobState=$(cat "{folder}/state")"; [[ $1 != requeue ]] ;;
  srun) [[ $1 = --overlap ]] || source "{folder}/do" ;;
  sbatch | squeue) source "{folder}/$(basename "$0")" ;;
  sleep) true ;;
esac
"""


class Bench:
    """A workdir with one run and an awkward name, and stand-ins for Slurm's programs."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.workdir = folder / "the $runs 'of' 100%"
        self.run = self.workdir / "seed=0"
        for name in ("srun", "scontrol", "sbatch", "squeue", "scancel", "sleep"):
            path = folder / "bin" / name
            write_whole(path, STAND_IN.format(folder=folder))
            path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.says(state="RUNNING", do="exit 0", sbatch="echo 12", squeue="true")

    def says(self, **files):
        for name, content in files.items():
            write_whole(self.folder / name, content + "\n")

    def called(self, program):
        lines = (self.folder / "called").read_text().splitlines()
        return [line for line in lines if line.startswith(program)]

    def start(self, command="segjax train", restarts=0, nodes=1, **options):
        """Start the run by the script, as Slurm does, and return the exit status."""
        write_whole(self.workdir / slurm_script.RUNS, f"seed=0\t{command}\n")
        script = self.folder / "spooled"
        write_whole(script, render("tiny", self.workdir, Options(**options), [1]))
        (self.folder / "called").unlink(missing_ok=True)
        variables = {
            "SLURM_ARRAY_JOB_ID": "12",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_JOB_ID": "12",
            "SLURM_JOB_NODELIST": "a",
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_RESTART_COUNT": str(restarts),
        }
        return subprocess.run(["bash", script], env=os.environ | variables, timeout=60).returncode


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_the_script_has_all_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = render(
        "skips",
        tmp_path / "a b%",
        Options(
            partition="gpu",
            account="vision",
            qos="long",
            time=129600,
            nodes=2,
            processes_per_node=4,
            gpus_per_node="a100:4",
            cpus_per_task=8,
            memory="64G",
            constraint="[rack1|rack2]",
            setup=["module load cuda", "export A='b c'"],
            sbatch=["--exclude=node7"],
            most_requeues=3,
            warning=300,
        ),
        [1, 2, 3, 7],
        at_once=2,
    )
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        f"#SBATCH {option}"
        for option in (
            "--job-name=skips",
            "--array=1-3,7%2",
            "--partition=gpu",
            "--account=vision",
            "--qos=long",
            "--time=1-12:00:00",
            "--nodes=2",
            "--ntasks-per-node=4",
            "--cpus-per-task=8",
            "--gres=gpu:a100:4",
            "--mem=64G",
            "--constraint=[rack1|rack2]",
            f"--chdir={tmp_path}",
            f'--output="{tmp_path}/a b%%/slurm/%A_%a.log"',
            "--open-mode=append",
            "--signal=TERM@300",
            "--requeue",
            "--exclude=node7",
        )
    ]
    for line in (
        f"python={sys.executable}",
        "srun=(srun --kill-on-bad-exit=1 --cpus-per-task=8)",
        "most_requeues=3",
        "module load cuda",
        "export A='b c'",
    ):
        assert text.count(f"\n{line}\n") == 1
    assert "\n#SBATCH --array=4,6-7%2\n" in replace_array(text, [6, 4, 7])


def test_a_container_has_its_own_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = Options(container_image="nvcr.io#nvidia/jax:1", container_mounts=["/data:/data"])
    text = render("skips", tmp_path / "runs", options, [1])
    assert "\npython=python3\n" in text
    words = shlex.split(next(line for line in text.splitlines() if line.startswith("srun=(")))
    assert words[2] == "--container-image=nvcr.io#nvidia/jax:1"
    runs = tmp_path / "runs"
    assert words[3] == f"--container-mounts={tmp_path}:{tmp_path},{runs}:{runs},/data:/data"
    assert words[4] == f"--container-workdir={tmp_path})"


def test_arguments_with_special_characters_arrive_unchanged(bench):
    bench.says(do='printf "<%s>" "$@"')
    odd = ["a b", "$HOME", "it's", '"', "\\", "*", "#", "`x`"]
    assert bench.start(shlex.join(["segjax", "train", *odd])) == 0
    said = (bench.run / "log.txt").read_text().splitlines()[-1]
    words = ["--kill-on-bad-exit=1", sys.executable, "-m", "segjax", "train", *odd]
    assert said == "".join(f"<{word}>" for word in words)


def test_runs_share_a_compilation_cache(bench, monkeypatch):
    bench.says(do='echo "in $JAX_COMPILATION_CACHE_DIR"')
    for folder in (bench.workdir / "compiled", "/else where"):
        assert bench.start() == 0
        assert (bench.run / "log.txt").read_text().splitlines()[-1] == f"in {folder}"
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/else where")


@pytest.mark.parametrize("status", [143, 75])  # it saved on a signal; its others did not start
def test_a_saved_run_requeues_its_own_task(bench, status):
    bench.says(do=f"exit {status}")
    assert bench.start(restarts=2, most_requeues=3) == status
    # 12_1 is the task; 12 would be the whole array. The stand-in refuses, so the script retries.
    assert bench.called("scontrol requeue") == ["scontrol requeue 12_1"] * 4
    bench.says(state="TIMEOUT")
    bench.start()
    assert bench.called("scontrol requeue")


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_a_canceled_or_requeued_job_is_not_requeued(bench, state):
    for number in (143, 1):
        bench.says(state=state, do=f"exit {number}")
        assert bench.start(nodes=2) == number
        assert bench.called("scontrol") == ["scontrol show job 12_1"]
        assert not (bench.run / "error.txt").exists()


def test_the_number_of_requeues_is_limited(bench):
    bench.says(do="echo segjax: stopped by SIGTERM; exit 143")
    assert bench.start(restarts=3, most_requeues=3) == 143
    assert not bench.called("scontrol requeue")
    error = (bench.run / "error.txt").read_text()
    assert "requeued 3 times already; submit it again to resume" in status.failure_cause(error)


def test_a_failed_run_leaves_the_output_of_this_start(bench):
    bench.says(do="echo former; exit 1")
    bench.start()
    bench.says(do="echo 'segjax: loss nan'; echo 'srun: error: a: task 0: Exited with exit code 1'")
    with (bench.folder / "do").open("a") as file:
        file.write("exit 1\n")
    assert bench.start(nodes=2) == 1
    error = (bench.run / "error.txt").read_text()
    assert "former" not in error
    assert status.failure_cause(error) == "loss nan"
    # No node was lost, so it is not requeued.
    assert not bench.called("scontrol requeue")
    assert (bench.run / "log.txt").read_text().count("job 12_1 on a") == 2
    bench.says(do="exit 0")
    assert bench.start() == 0
    assert not (bench.run / "error.txt").exists()


def test_a_run_in_use_is_requeued(bench):
    bench.says(do="echo segjax: workdir x is in use by another process; exit 2")
    bench.start()
    assert bench.called("scontrol requeue")
    said = "requeuing 12_1 and waiting for Slurm to end this job ...\n"
    assert (bench.run / "log.txt").read_text().endswith(said)


def test_a_failing_setup_line_fails_the_run(bench):
    assert bench.start(setup=["export A=1", "no_such_program --x", "export B=2"]) == 127
    assert "no_such_program: command not found" in (bench.run / "error.txt").read_text()
    assert not bench.called("srun")
    bench.says(do='[[ "$A $B" = "1 2 3" ]]')
    assert bench.start(setup=["export A=1", "export B='2 3'"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 120}, "--warning is 120 seconds, expected less than --time-limit, 120"),
        ({"gpus_per_node": "many"}, "--gpus-per-node is 'many', expected N or TYPE:N"),
        ({"memory": "64GB"}, "--memory is '64GB', expected a number with K, M, G or T"),
        ({"partition": "a\nb"}, r"--partition is 'a\nb', expected one line of text"),
        ({"setup": ["true", ""]}, "--setup is '', expected one line of text"),
        ({"sbatch": ["exclusive"]}, "--sbatch is 'exclusive', expected --sbatch=--NAME=VALUE"),
    ],
)
def test_an_invalid_option_is_refused(options, message):
    with pytest.raises(UserError) as error:
        Options(**options)
    assert str(error.value) == message


def test_format_array():
    assert format_array([1]) == "1"
    assert format_array([5, 3, 1, 2, 7, 8]) == "1-3,5,7-8"


def test_submissions_keep_task_numbers_and_skip_finished_and_queued_runs(
    bench, scenes_data_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1, 0.2], [0])
    first, second = (point.name for point in grids.load_points(spec, {}))
    own = ["sweep", "--config", spec, "--workdir", str(bench.workdir), "--launcher", "slurm"]

    def said(arguments, expected=0):
        assert main(arguments) == expected
        out, error = capsys.readouterr()
        return error if expected else out

    def in_queue(state):
        script = shlex.quote(str(bench.workdir / slurm_script.SCRIPT))
        bench.says(squeue=f"echo '12|2|{state}|None|'{script}; echo '9|1|RUNNING|None|/other.sh'")

    out = said([*own, "--dry-run", "--only", f"*{second}"])
    assert "1 run: 1 new" in out
    assert "\n#SBATCH --array=1\n" in out
    assert not bench.workdir.exists()

    bench.says(sbatch="echo 'sbatch: error: invalid partition: gpu' >&2; exit 1")
    assert said([*own, "--partition", "gpu"], 2) == (
        "segjax: sbatch refuses: invalid partition: gpu\n"
    )
    bench.says(sbatch="echo '12;lab'")
    assert said(own).startswith("submitted 2 runs as job 12, from ")
    runs = slurm.read_runs(bench.workdir)
    for name, point in zip((first, second), grids.load_points(spec, {}), strict=True):
        assert shlex.split(runs[name]) == grids.train_command(spec, point, bench.workdir)

    # Queued and finished runs get no second job; task numbers stay.
    in_queue("PENDING")
    assert "submitted 1 run as job 12" in said(own)
    assert "#SBATCH --array=1\n" in (bench.workdir / slurm_script.SCRIPT).read_text()
    write_whole(bench.workdir / first / "result.json", "{}")
    assert said(own) == "nothing to submit: 1 finished, 1 in the queue\n"
    assert "is in the queue as 12_2 PENDING (None) with another command" in said(
        [*own, "--config.steps=8"], 2
    )
    in_queue("CANCELLED")
    error = said([*own, "--resubmit", "--config.steps=8"], 2)
    assert error.startswith(f"segjax: --resubmit repeats the command of run {first}, 'segjax train")
    assert error.endswith("; leave out the overrides, which differ\n")
    assert "submitted 1 run as job 12" in said([*own, "--resubmit"])
    assert "#SBATCH --array=2\n" in (bench.workdir / slurm_script.SCRIPT).read_text()

    assert "12_2 CANCELLED" in said([*own, "--status"])
    script = bench.workdir / slurm_script.SCRIPT
    for state, shown in (("CANCELLED", "13_2 FAILED"), ("PENDING", "12_2 PENDING (None)")):
        jobs = [f"13|2|FAILED|None|{script}", f"12|2|{state}|None|{script}"]
        bench.says(squeue=f"printf '%s\\n' {shlex.join(jobs)}")
        assert shown in said([*own, "--status"])
    bench.says(squeue="true")
    assert "12_2 has left the queue" in said([*own, "--status"])

    monkeypatch.setenv("PATH", "/nowhere")
    expected = "segjax: squeue not found, expected Slurm's programs on the PATH\n"
    assert said(own, 2) == expected


def test_contradictory_options_give_a_one_line_error(tmp_path, capsys, scenes_data_dir):
    spec = toy_grid.write(tmp_path, scenes_data_dir, [0.1], [0])
    own = ["sweep", "--config", spec, "--workdir", tmp_path / "runs"]
    slurm = ["--launcher", "slurm"]
    for arguments, message in (
        (["--most-requeues", "3"], "--most-requeues does nothing without --launcher slurm"),
        (["--cancel"], "--cancel does nothing without --launcher slurm"),
        (
            [*slurm, "--dry-run", "--config.data.data_dir=a\nb"],
            "has an override of more than one line",
        ),
        ([*slurm, "--cancel"], "is not the workdir of a sweep on Slurm"),
        ([*slurm, "--resubmit"], "is not the workdir of a sweep on Slurm"),
        ([*slurm, "--cancel", "--resubmit"], "not allowed with argument"),
        ([*slurm, "--image", "x"], "--image does nothing without --launcher kubernetes"),
        ([*slurm, "--jobs", "gpus"], "--jobs is gpus, expected a number with --launcher slurm"),
        (
            [*slurm, "--time-limit", "1:2"],
            "argument --time-limit: expected a time > 0 in seconds, HH:MM:SS",
        ),
    ):
        assert message in command_refusal(capsys, [*own, *arguments])
