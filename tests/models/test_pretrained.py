"""Weights of VGG-16 and ResNets: read from several forms, put into networks, and trained from."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from huggingface_hub import close_session, constants
from safetensors.numpy import save_file

from segjax import config as configs
from segjax import models, train
from segjax.data import loader
from segjax.data.datasets import DatasetInfo
from segjax.errors import UserError
from segjax.models import pretrained, resnet, vgg
from segjax.models.layers import ConvBlock
from support.errors import refusal
from support.runs import DESCRIPTION, arrays, small_config
from support.variables import abstract

GOLDEN = Path(__file__).parents[1] / "golden" / "vgg16.npz"
# conv1_1 and features.0, and so on.
TORCHVISION = dict(
    zip(
        pretrained.CONVOLUTIONS,
        ("0", "2", "5", "7", "10", "12", "14", "17", "19", "21", "24", "26", "28"),
        strict=True,
    )
)


@pytest.fixture(scope="session")
def vgg16_path():
    """Return the path of the real weights, which SEGJAX_VGG16 names."""
    path = os.environ.get("SEGJAX_VGG16")
    if not path:
        pytest.skip("SEGJAX_VGG16 is unset, which would name a file of VGG-16's weights")
    return path


def write(path, tensors, dtype=np.float32):
    save_file({k: np.asarray(x).astype(dtype) for k, x in tensors.items()}, path)
    return str(path)


@functools.cache
def weights(width=2, fc_width=0):
    """Draw {"conv1_1/kernel": ...} of a narrow VGG-16; fc_width 0: without fc6 and fc7."""
    rng = np.random.default_rng(0)
    tensors, features = {}, 3
    for stage, (depth, multiple) in enumerate(vgg.STAGES, 1):
        for n in range(1, depth + 1):
            shape = (3, 3, features, features := multiple * width)
            tensors[f"conv{stage}_{n}/kernel"] = rng.normal(0, 0.1, shape)
            tensors[f"conv{stage}_{n}/bias"] = rng.normal(0, 0.1, features)
    for layer, side in (("fc6", 7), ("fc7", 1)) if fc_width else ():
        tensors[f"{layer}/kernel"] = rng.normal(0, 0.1, (side, side, features, fc_width))
        tensors[f"{layer}/bias"] = rng.normal(0, 0.1, fc_width)
        features = fc_width
    # Rounded to float16, so that files in every format have the same values.
    return {k: v.astype(np.float16).astype(np.float32) for k, v in tensors.items()}


def oihw(kernel):
    return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def torchvision(tensors, fc6, fc7, flat):
    """Rename weights as torchvision (flat linear layers) or timm save them, with a classifier."""
    names = {k: f"features.{n}" for k, n in TORCHVISION.items()} | {"fc6": fc6, "fc7": fc7}
    saved = {}
    for path, value in tensors.items():
        layer, leaf = path.split("/")
        if leaf == "kernel":
            value = oihw(value)
            if flat and layer.startswith("fc"):
                value = value.reshape(len(value), -1)
        saved[f"{names[layer]}.{'weight' if leaf == 'kernel' else 'bias'}"] = value
    classifier = "classifier.6" if flat else "head.fc"
    return saved | {f"{classifier}.weight": np.ones((9, 6)), f"{classifier}.bias": np.ones(9)}


@functools.cache
def zeros(name, **options):
    model = models.create(name, 3, **options)
    shapes = abstract(model, side=200 if name == "deconvnet" else 32)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def assert_holds(variables, tensors, layers):
    """Assert that these layers have their weights, and everything else is still zero."""
    found = {
        "/".join(key.key for key in path): np.asarray(x)
        for path, x in jax.tree.leaves_with_path(variables)
    }
    for path, value in tensors.items():
        layer, leaf = path.split("/")
        if layer in layers:
            filled = found.pop(f"params/{layer}/conv/{leaf}")
            assert filled.dtype == np.float32
            np.testing.assert_array_equal(filled, value, err_msg=path)
    assert found
    assert not any(x.any() for x in found.values())


FORMS = {
    "own": lambda tensors: tensors,
    "torchvision": lambda t: torchvision(t, "classifier.0", "classifier.3", True),
    "timm": lambda t: torchvision(t, "pre_logits.fc1", "pre_logits.fc2", False),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_files_in_all_formats_fill_the_same(form, dtype, tmp_path):
    path = write(tmp_path / "vgg.safetensors", FORMS[form](weights(2, 6)), dtype)
    layers = [*pretrained.CONVOLUTIONS, "fc6", "fc7"]
    variables = zeros("fcn8s", width=2, fc_width=6)
    assert_holds(pretrained.fill(variables, path), weights(2, 6), layers)


def test_bfloat16_files_are_read(tmp_path):
    path = write(tmp_path / "vgg.safetensors", weights(), jnp.bfloat16)
    found = pretrained.load(path)["conv3_2"]["kernel"]
    np.testing.assert_allclose(found, weights()["conv3_2/kernel"], rtol=2**-8)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "options", "fully_connected"),
    [
        ("segnet", {}, []),
        ("bayesian_segnet", {}, []),
        ("fcn32s", {"fc_width": 6, "batch_norm": True}, ["fc6", "fc7"]),
        ("fcn16s", {"fc_width": 5}, []),
        ("deconvnet", {"fc_width": 6}, ["fc6", "fc7"]),
        ("deconvnet", {"fc_width": 6, "fc_kernel": 3}, ["fc7"]),
        ("deeplab_largefov", {"fc_width": 4}, []),
        ("deeplab_aspp", {"fc_width": 4}, []),
        ("dilation8", {"fc_width": 6}, ["fc6", "fc7"]),
    ],
)
def test_every_network_on_vgg16_is_filled(name, options, fully_connected, tmp_path):
    path = write(tmp_path / "vgg.safetensors", weights(2, 6))
    filled = pretrained.fill(zeros(name, width=2, **options), path)
    assert_holds(filled, weights(2, 6), [*pretrained.CONVOLUTIONS, *fully_connected])


def without(*keys):
    return {key: value for key, value in weights().items() if key not in keys}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (without("conv3_2/kernel"), "lacks 1 arrays of VGG-16: conv3_2/kernel"),
        (without("conv3_2/kernel", "conv5_3/bias"), "conv3_2/kernel, conv5_3/bias"),
        ({}, "lacks 26 arrays of VGG-16: conv1_1/kernel, conv1_1/bias"),
        (weights() | {"fc7/bias": np.ones(3)}, "lacks 1 arrays of VGG-16: fc7/kernel"),
        (weights() | {"conv6_1/kernel": np.ones(3)}, "has 'conv6_1/kernel', which is not a layer"),
        (weights() | {"features.1.weight": np.ones(2)}, "has 'features.1.weight'"),
        (weights() | {"conv1_1/scale": np.ones(2)}, "has 'conv1_1/scale'"),
        (
            weights() | {"conv1_2/kernel": np.ones((3, 3, 2, 4))},
            "conv1_2/kernel is 3x3x2x4, but the network has 3x3x2x2",
        ),
        (
            weights() | {"conv1_2/bias": np.ones((2, 1))},
            "conv1_2/bias is 2x1, but the network has 2",
        ),
        (weights() | {"features.0.weight": np.ones(2)}, "conv1_1/kernel is 2, but the network has"),
    ],
)
def test_keys_and_shapes_that_are_wrong_are_one_line_that_names_them(tensors, said, tmp_path):
    path = write(tmp_path / "vgg.safetensors", tensors)
    found = refusal(pretrained.fill, zeros("segnet", width=2), path)
    assert found.startswith(path)
    assert said in found


def test_a_network_that_is_not_on_vgg16_is_refused(tmp_path):
    path = write(tmp_path / "vgg.safetensors", weights())
    with pytest.raises(UserError, match="conv1_1/kernel is 3x3x3x2, but the network lacks it"):
        pretrained.fill(zeros("segnet_basic", width=2), path)


def torchvision_resnet(trunk, width=2):
    """Draw the state dict of torchvision's narrow ResNet, classifier and counters included."""
    rng, tensors = np.random.default_rng(1), {}

    def conv(name, inner, outer, kernel_size):
        tensors[f"{name}.weight"] = rng.normal(size=(outer, inner, kernel_size, kernel_size))

    def norm(name, features):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{name}.{leaf}"] = rng.uniform(size=features)
        tensors[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", 3, width, 7)
    norm("bn1", width)
    inner = width
    for layer, units in enumerate(resnet.UNITS[trunk]):
        planes = 2**layer * width
        for unit in range(units):
            name = f"layer{layer + 1}.{unit}"
            basic = [(inner, planes, 3), (planes, planes, 3)]
            bottleneck = [(inner, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)]
            layers = basic if trunk in ("resnet18", "resnet34") else bottleneck
            for n, sizes in enumerate(layers, start=1):
                conv(f"{name}.conv{n}", *sizes)
                norm(f"{name}.bn{n}", sizes[1])
            outer = layers[-1][1]
            if inner != outer:
                conv(f"{name}.downsample.0", inner, outer, 1)
                norm(f"{name}.downsample.1", outer)
            inner = outer
    tensors |= {"fc.weight": np.ones((9, inner)), "fc.bias": np.ones(9)}
    return {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in tensors.items()}


OF_RESNET = [
    ("deeplab_v2", "resnet18", {}),
    ("deeplab_v3", "resnet50", {"aspp_width": 2}),
    ("deeplab_v3", "resnet101", {"blocks": 7, "head": "none"}),
    ("unet_resnet", "resnet34", {}),
]


@pytest.mark.parametrize(("name", "trunk", "options"), OF_RESNET)
def test_every_network_on_a_resnet_is_filled(name, trunk, options, tmp_path):
    tensors = torchvision_resnet(trunk)
    path = str(tmp_path / "resnet.safetensors")
    save_file(tensors, path)
    filled = pretrained.fill(zeros(name, trunk=trunk, width=2, **options), path)
    trunks = {kind: filled[kind].pop("trunk") for kind in ("params", "batch_stats")}
    assert not any(np.any(x) for x in jax.tree.leaves(filled))  # nothing but the trunk
    for kind, tree in trunks.items():
        for layer in [layer for layer in tree if layer[:6] in ("layer5", "layer6", "layer7")]:
            assert not any(np.any(x) for x in jax.tree.leaves(tree.pop(layer))), (kind, layer)

    def of(kind, place, leaf):
        for part in place.split("/"):
            kind = kind[part]
        return np.asarray(kind[leaf])

    params, stats = trunks["params"], trunks["batch_stats"]
    deepest = f"layer3_{resnet.UNITS[trunk][2] - 1}"
    for place, key in (
        ("conv1", "conv1"),
        ("layer2_0/downsample_0", "layer2.0.downsample.0"),
        (f"{deepest}/conv2", f"{deepest.replace('_', '.')}.conv2"),
    ):
        kernel = of(params, place, "kernel")
        np.testing.assert_array_equal(kernel, tensors[f"{key}.weight"].transpose(2, 3, 1, 0))
    for place, key in (
        ("bn1", "bn1"),
        ("layer2_0/downsample_1", "layer2.0.downsample.1"),
        ("layer4_1/bn2", "layer4.1.bn2"),
    ):
        np.testing.assert_array_equal(of(params, place, "scale"), tensors[f"{key}.weight"])
        np.testing.assert_array_equal(of(params, place, "bias"), tensors[f"{key}.bias"])
        np.testing.assert_array_equal(of(stats, place, "mean"), tensors[f"{key}.running_mean"])
        np.testing.assert_array_equal(of(stats, place, "var"), tensors[f"{key}.running_var"])
    # Each of the file's arrays is somewhere: none is left at zero.
    assert all(np.any(x) for x in jax.tree.leaves(trunks))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer3.2.conv1.weight": np.ones((8, 8, 3, 3))}, "has 'layer3.2.conv1.weight', which is"),
        ({"bn1.weight": np.ones(3)}, "bn1.weight is 3, but the network's bn1/scale is 2"),
        (
            {"layer1.0.conv1.weight": np.ones((2, 2, 1, 1))},
            "layer1.0.conv1.weight is 2x2x1x1, but the network's layer1_0/conv1/kernel is 3x3x2x2",
        ),
        (
            {"layer1.0.bn1.running_var": None, "conv1.weight": None},
            "lacks 2 arrays of ResNet: conv1/kernel, layer1_0/bn1/var",
        ),
        ({"conv1.weight": np.ones(2)}, "has 'conv1.weight', which is not in the network's ResNet"),
    ],
)
def test_arrays_of_another_resnet_are_one_line_that_names_them(change, said, tmp_path):
    tensors = torchvision_resnet("resnet18") | change
    path = str(tmp_path / "resnet.safetensors")
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    found = refusal(pretrained.fill, zeros("unet_resnet", trunk="resnet18", width=2), path)
    assert found.startswith(path)
    assert said in found


def test_a_network_on_a_resnet_refuses_vgg16(tmp_path):
    path = write(tmp_path / "vgg.safetensors", weights())
    with pytest.raises(UserError, match=r"has 'conv1_1/.*', which is not in the network's ResNet"):
        pretrained.fill(zeros("unet_resnet", trunk="resnet18", width=2), path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 50, (2).to_bytes(8, "little") + b"[]"])
def test_a_file_that_is_not_safetensors_is_one_line(content, tmp_path):
    path = tmp_path / "vgg.safetensors"
    path.write_bytes(content)
    assert "cannot be read as a safetensors file: " in refusal(pretrained.load, str(path))


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = Path(write(tmp_path / "vgg.safetensors", weights()))
    path.write_bytes(path.read_bytes()[:-3])
    assert "cannot be read as a safetensors file: " in refusal(pretrained.load, str(path))


def test_integers_are_refused(tmp_path):
    path = write(tmp_path / "vgg.safetensors", weights(), np.int64)
    with pytest.raises(UserError, match="'conv1_1/bias' is int64, expected floating point"):
        pretrained.load(path)


@pytest.mark.parametrize("source", ["nowhere/vgg.safetensors", "vgg16", "/a/b/c"])
def test_a_source_that_is_neither_a_file_nor_a_name_is_refused(source):
    with pytest.raises(UserError, match=f"^pretrained weights {source}: no such file"):
        pretrained.load(source)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve a stand-in for the hub with one repository, and an empty cache; list its requests."""
    folder = tmp_path / "hub"
    file = folder / "timm" / "vgg16.tiny" / "resolve" / "main" / "model.safetensors"
    file.parent.mkdir(parents=True)
    write(file, FORMS["timm"](weights(2, 6)))
    shutil.copytree(file.parent, file.parents[1] / "v1.0")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def send_response(self, code, message=None):
            asked.append((self.command, self.path, self.headers["Authorization"]))
            super().send_response(code, message)

        def end_headers(self):
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
            super().end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        # The library reads the environment when it is imported.
        endpoint = f"http://127.0.0.1:{server.server_port}"
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("no_proxy", "*")
        close_session()
        yield asked
        close_session()
        server.shutdown()
        thread.join()


def test_a_name_on_the_hub_is_downloaded_once(hub, monkeypatch):
    for _ in range(2):
        filled = pretrained.fill(zeros("segnet", width=2), "timm/vgg16.tiny")
        assert_holds(filled, weights(2, 6), pretrained.CONVOLUTIONS)
    path = "/timm/vgg16.tiny/resolve/main/model.safetensors"
    assert ("HEAD", path, "Bearer hf_secret") in hub
    assert hub.count(("GET", path, "Bearer hf_secret")) == 1

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.clear()
    pretrained.load("timm/vgg16.tiny")
    assert hub == []


def test_a_revision_is_asked_for(hub):
    pretrained.load("timm/vgg16.tiny@v1.0")
    assert {path for _, path, _ in hub} == {"/timm/vgg16.tiny/resolve/v1.0/model.safetensors"}


@pytest.mark.parametrize("name", ["timm/vgg17", "timm/vgg16.tiny@v2", "timm/vgg--16"])
def test_the_error_for_an_unknown_repository_is_one_line(name, hub):
    said = refusal(pretrained.load, name)
    assert said.startswith(f"pretrained weights {name} cannot be downloaded: ")


def test_offline_without_a_cache_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "timm/vgg16.tiny cannot be downloaded: " in refusal(pretrained.load, "timm/vgg16.tiny")
    assert hub == []


def test_the_library_of_the_hub_is_imported_only_to_download():
    script = "import segjax.models.pretrained, sys; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_real_weights_agree_with_an_independent_implementation(vgg16_path):
    model = models.create("fcn32s", 3, padding="same", fc_width=2)
    image = np.load(GOLDEN)["image"]
    variables = zeros("fcn32s", padding="same", fc_width=2)
    variables = pretrained.fill(variables, vgg16_path)
    info = DatasetInfo("none", (), (), (0.0,) * 3, (1.0,) * 3, {}, image.shape[:2])

    @jax.jit
    def features(variables, image):
        x = loader.normalize(image.astype(jnp.float32) / 255, "imagenet", info)
        apply = functools.partial(
            model.apply, train=False, mutable="intermediates", capture_intermediates=True
        )
        return apply(variables, x[None])[1]["intermediates"]

    found = features(variables, image)
    with np.load(GOLDEN) as golden:
        for stage, (depth, _) in enumerate(vgg.STAGES, 1):
            layer = f"conv{stage}_{depth}"
            x = np.asarray(found[layer]["__call__"][0])
            for values, expected in (
                (x.mean((0, 1, 2)), golden[f"{layer}/means"]),
                (x.ravel()[::101], golden[f"{layer}/values"]),
            ):
                assert (expected > 0).mean() > 0.02
                scale = np.abs(expected).max()
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5 * scale)


class Trunk(nn.Module):
    """VGG-16's convolutions and a classifier, nothing else."""

    num_classes: int
    width: int = 2
    dtype: object = np.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, *, train):
        def conv(x, multiple, name):
            return ConvBlock(multiple * self.width, 3, batch_norm=False, name=name)(x, train=train)

        x = image
        for number in range(1, 6):
            x = vgg.stage(x, number, conv)[:, ::2, ::2]
        x = nn.Conv(self.num_classes, (1, 1), name="classifier")(x)
        return jax.image.resize(x, (*image.shape[:3], self.num_classes), "nearest")


@pytest.mark.slow
def test_training_starts_from_the_weights_once(scenes_data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, "trunk", Trunk)
    path = Path(write(tmp_path / "vgg.safetensors", weights()))
    config = small_config(
        scenes_data_dir,
        model__name="trunk",
        model__pretrained=str(path),
        data__normalization="imagenet",
        optimizer__learning_rate=0.0,  # so that what it starts from is what it ends with
        steps=2,
    )
    workdir = tmp_path / "run"
    train.train(config, workdir, DESCRIPTION)

    def check(saved, tensors):
        for part in ("variables", "ema"):
            for name, value in tensors.items():
                layer, leaf = name.split("/")
                key = f"['{part}']['params']['{layer}']['conv']['{leaf}']"
                np.testing.assert_allclose(saved[key], value, rtol=1e-6, err_msg=key)
            assert saved[f"['{part}']['params']['classifier']['kernel']"].any()

    check(arrays(workdir, "latest"), weights())
    # A second start reads its checkpoint, and no longer the file.
    path.unlink()
    (workdir / "result.json").unlink()
    train.train(config, workdir, DESCRIPTION)
    config.seed = 1
    with pytest.raises(UserError, match="no such file"):
        train.train(config, tmp_path / "other", DESCRIPTION)


def test_the_normalization_follows_the_weights(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from segjax.config import default as get_config")
    assert configs.load(str(file), {}).data.normalization == "mean_std"
    config = configs.load(str(file), {"model.pretrained": "timm/vgg16.tv_in1k"})
    assert config.data.normalization == "imagenet"
    with pytest.raises(UserError, match=r"imagenet where model\.pretrained is set, found 'none'"):
        configs.load(str(file), {"model.pretrained": "a/b", "data.normalization": "none"})


def test_imagenets_normalization():
    info = DatasetInfo("gray", (), (), (0.5,) * 3, (0.5,) * 3, {}, (1, 2))
    image = jnp.asarray([[[0.485, 0.456, 0.406], [1.0, 0.0, 0.631]]], jnp.float32)
    found = loader.normalize(image, "imagenet", info)
    expected = [[[0, 0, 0], [0.515 / 0.229, -0.456 / 0.224, 1]]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"^data\.normalization imagenet needs 3 channels, but the"):
        loader.normalize(image[..., :1], "imagenet", info)
