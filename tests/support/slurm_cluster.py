"""A private Slurm of some nodes on this machine, real but for its hardware.

It needs no root and no settings of the machine, listens on the loopback interface alone, and is
gone with the test. Debian's packages for it are slurm-wlm and munge.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_CONFIG = """
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# How long a job that was requeued waits; the default is 120 seconds.
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# More CPUs than the machine has.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=60
# Jobs that have ended are remembered to the end of the tests.
MinJobAge=3600
MailProg=/bin/true
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class Cluster:
    """A private Slurm; its commands work with `environment`."""

    def __init__(self, folder: Path, nodes: int, cpus: int):
        """Configure nodes that each claim to have this number of CPUs."""
        self.folder, self._daemons = folder, {}
        # JAX takes a node's name for the address of its coordinator.
        self.nodes = [f"127.0.0.{number}" for number in range(1, nodes + 1)]
        ports = _free_ports(1 + nodes)
        lines = "\n".join(
            f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus}"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        (folder / "state").mkdir(parents=True)
        for name in self.nodes:
            (folder / f"spool.{name}").mkdir()
        text = _CONFIG.format(
            controller=ports[0], user=getpass.getuser(), folder=folder, nodes=lines
        )
        self._conf = folder / "slurm.conf"
        self._conf.write_text(text)
        if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
            (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which Slurm's commands find the cluster."""
        return {"SLURM_CONF": str(self._conf), "PATH": _PATH}

    def call(self, *words: object) -> str:
        """Run one of Slurm's commands, which must succeed; return its output."""
        done = subprocess.run(
            [str(word) for word in words],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the controller and the nodes; return when they are idle."""
        try:
            self._start("slurmctld")
            for name in self.nodes:
                self.start_node(name)
            self.wait_for(lambda: self._idle() == f"idle {len(self.nodes)}", "its nodes", 60)
        except BaseException:
            self.stop()
            raise

    def start_node(self, name: str) -> None:
        self._start("slurmd", "-N", name)

    def _start(self, program, *arguments):
        # As a child, so that it can be ended by its own id.
        self._daemons[" ".join([program, *arguments])] = subprocess.Popen(
            [program, "-D", *arguments],
            env=os.environ | self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _idle(self):
        for name, daemon in self._daemons.items():
            assert daemon.poll() is None, f"{name} ended with {daemon.returncode}: {self._log()}"
        done = subprocess.run(
            ["sinfo", "-h", "-o", "%T %D"],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def _log(self):
        log = self.folder / "slurmctld.log"
        return f"{self._queue()}\n{log.read_text()[-3000:] if log.exists() else ''}"

    def kill_node(self, name: str) -> None:
        """Kill the daemon of a node and all that runs on it, as a power cut does."""
        daemon = self._daemons.pop(f"slurmd -N {name}")
        daemon.kill()
        daemon.wait()
        tasks = processes_with(f"SLURMD_NODENAME={name}", f"SLURM_CONF={self._conf}")
        # Those that watch over them die first, and tell nobody.
        for pid in sorted({_parent(pid) for pid in tasks} - {0, 1, *tasks}) + tasks:
            _kill(pid)

    def stop(self) -> None:
        """Cancel all jobs and end all daemons."""
        subprocess.run(
            ["scancel", "-Q", "--user", getpass.getuser()],
            env=os.environ | self.environment,
            capture_output=True,
            timeout=60,
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._queue():
            time.sleep(0.2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in processes_with(f"SLURM_CONF={self._conf}", "SLURM_JOB_ID="):
            _kill(pid)

    def _queue(self):
        return subprocess.run(
            ["squeue", "-h"], env=os.environ | self.environment, capture_output=True, text=True
        ).stdout

    def wait_for(self, holds: Callable[[], object], what: str, seconds: float = 600) -> None:
        """Wait until `holds()` is true; fail after some seconds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}: {self._log()}"
            time.sleep(0.1)


@contextlib.contextmanager
def cluster(folder: Path, nodes: int, cpus: int) -> Iterator[Cluster]:
    """Run a cluster in the context."""
    started = Cluster(folder, nodes, cpus)
    started.start()
    try:
        yield started
    finally:
        started.stop()


def missing() -> str:
    """Return why there can be no cluster here, or an empty text."""
    needed = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
    lacking = [name for name in needed if not shutil.which(name, path=_PATH)]
    return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else ""


# Where Debian puts the daemons, which an ordinary user may not have in PATH.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def processes_with(*variables: str) -> list[int]:
    """Return the processes whose environment has a variable that begins with each of these."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                entries = (folder / "environ").read_bytes().split(b"\0")
                if all(any(e.startswith(v.encode()) for e in entries) for v in variables):
                    found.append(int(folder.name))
    return found
