import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import rolelens as rl
from rolelens.features import SparseAutoencoder, fit_topk, load_sae, save_sae, train_sae

D, F = 12, 40
HOOK = "blocks.1.hook_resid_post"


def weights(seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    made = {name: torch.randn(*shape, generator=drawn) for name, shape in shapes.items()}
    return made | {"threshold": torch.rand(F, generator=drawn)}


def second(x: np.ndarray, w: dict[str, np.ndarray], kind: str, k: int = 0, minus: bool = False):
    """Encode and decode one vector, feature by feature, from the definition of each kind."""
    inward = x - w["b_dec"] if minus else x
    pre = [sum(inward[i] * w["W_enc"][i, f] for i in range(D)) + w["b_enc"][f] for f in range(F)]
    if kind == "relu":
        acts = [max(p, 0.0) for p in pre]
    elif kind == "jumprelu":
        acts = [p if p > t and p > 0 else 0.0 for p, t in zip(pre, w["threshold"], strict=True)]
    else:
        kept = sorted(range(F), key=lambda f: -pre[f])[:k]
        acts = [max(pre[f], 0.0) if f in kept else 0.0 for f in range(F)]
    out = [sum(acts[f] * w["W_dec"][f, i] for f in range(F)) + w["b_dec"][i] for i in range(D)]
    return np.array(acts), np.array(out)


def agrees(sae: SparseAutoencoder, w: dict[str, Tensor], kind: str, **options: Any) -> None:
    plain = {name: tensor.double().numpy() for name, tensor in w.items()}
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(9)) * 3
    for row in x:
        acts, out = second(row.double().numpy(), plain, kind, **options)
        found = sae.encode(row)
        assert (acts > 0).any()
        np.testing.assert_allclose(found.numpy(), acts, atol=1e-4)
        np.testing.assert_allclose(sae.decode(found).numpy(), out, atol=1e-3)


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            path.write_text(json.dumps(content))
        elif name.endswith(".npz"):
            np.savez(path, **{key: tensor.numpy() for key, tensor in content.items()})
        elif name.endswith(".pt"):
            torch.save(content, path)
        else:
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
    return folder


def without(w: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in w.items() if name not in names}


@pytest.mark.parametrize("minus", [False, True])
@pytest.mark.parametrize("kind", ["standard", "jumprelu", "topk"])
def test_sae_lens_of_version_6(tmp_path: Path, kind: str, minus: bool) -> None:
    w = weights()
    config = {
        "architecture": kind,
        "apply_b_dec_to_input": minus,
        "normalize_activations": "none",
        "metadata": {"hook_name": HOOK, "model_name": "m"},
        **({"k": 4} if kind == "topk" else {}),
    }
    files = {"cfg.json": config, "sae_weights.safetensors": w}
    sae = load_sae(write(tmp_path, files))
    assert (sae.hook, sae.model, sae.place) == (HOOK, "m", (2, "resid_pre"))
    agrees(sae, w, {"standard": "relu"}.get(kind, kind), k=4, minus=minus)


def test_sae_lens_before_version_6(tmp_path: Path) -> None:
    w = without(weights(), "threshold")
    config = {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "hook_point": "blocks.0.hook_resid_pre",
    }
    sae = load_sae(write(tmp_path, {"cfg.json": config, "sae_weights.safetensors": w}))
    assert sae.place == (0, "resid_pre")
    agrees(sae, w, "topk", k=3, minus=True)


def test_a_topk_by_decoder_norm(tmp_path: Path) -> None:
    """Of pre times the decoder's norm the k largest are kept, and the decoder is taken as 1."""
    w = without(weights(), "threshold")
    config = {
        "architecture": "topk",
        "k": 4,
        "rescale_acts_by_decoder_norm": True,
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": HOOK},
    }
    sae = load_sae(write(tmp_path, {"cfg.json": config, "sae_weights.safetensors": w}))
    norms = w["W_dec"].norm(dim=-1)
    x = torch.randn(D)
    pre = (x @ w["W_enc"] + w["b_enc"]) * norms
    kept = pre >= pre.sort().values[-4]
    acts = torch.where(kept, pre.relu(), 0.0)
    torch.testing.assert_close(sae.encode(x), acts)
    expected = (acts / norms) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(sae.decode(acts), expected)


def test_gemma_scope(tmp_path: Path) -> None:
    w = weights()
    sae = load_sae(write(tmp_path / "layer_1" / "width_16k" / "average_l0_7", {"params.npz": w}))
    assert sae.place == (2, "resid_pre")
    agrees(sae, w, "jumprelu")
    bare = write(tmp_path / "bare", {"params.npz": w})
    assert load_sae(bare, hook="blocks.3.hook_resid_pre").place == (3, "resid_pre")
    with pytest.raises(rl.InputError, match="does not say which layer"):
        load_sae(bare)


def test_gemma_scope_2(tmp_path: Path) -> None:
    w = weights()
    config = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.1.output"}
    lower = {name.lower(): tensor for name, tensor in w.items()}
    files = {"config.json": config, "params.safetensors": lower}
    sae = load_sae(write(tmp_path / "a", files))
    assert sae.place == (2, "resid_pre")
    agrees(sae, w, "jumprelu")
    files["config.json"] = config | {"hf_hook_point_in": "model.layers.1.self_attn.o_proj.input"}
    with pytest.raises(rl.InputError, match="leaves a block"):
        load_sae(write(tmp_path / "b", files))
    files = {
        "config.json": config,
        "params.safetensors": lower | {"affine_skip_connection": torch.ones(2)},
    }
    with pytest.raises(rl.InputError, match="transcoder"):
        load_sae(write(tmp_path / "c", files))


def test_llama_scope_scales_its_input(tmp_path: Path) -> None:
    """Of inputs scaled to sqrt(d), with a threshold of inputs that are not."""
    w = weights()
    norm = 7.0
    config = {
        "d_model": D,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "jump_relu_threshold": 0.5,
        "dataset_average_activation_norm": {"in": norm, "out": norm},
    }
    tensors = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "decoder.bias": w["b_dec"],
    }
    files = {"hyperparams.json": config, "checkpoints/final.safetensors": tensors}
    sae = load_sae(write(tmp_path, files))
    scale = D**0.5 / norm
    x = torch.randn(6, D) * 4
    pre = (x * scale) @ w["W_enc"] + w["b_enc"]
    acts = torch.where(pre / scale > 0.5, pre, 0.0)
    torch.testing.assert_close(sae.encode(x), acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        sae.decode(acts), (acts @ w["W_dec"] + w["b_dec"]) / scale, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder"]
)
def test_dictionary_learning(tmp_path: Path, kind: str) -> None:
    w = weights()
    trainer = {
        "dict_class": kind,
        "layer": 1,
        "k": 4,
        "lm_name": "m",
        "submodule_name": "resid_post_layer_1",
    }
    linear = {
        "encoder.weight": w["W_enc"].T,
        "encoder.bias": w["b_enc"],
        "decoder.weight": w["W_dec"].T,
        "bias" if kind == "AutoEncoder" else "b_dec": w["b_dec"],
        "threshold": torch.tensor(0.4),
    }
    tensors = w if kind == "JumpReluAutoEncoder" else linear
    sae = load_sae(write(tmp_path, {"config.json": {"trainer": trainer}, "ae.pt": tensors}))
    assert sae.place == (2, "resid_pre")
    if kind == "BatchTopKSAE":
        w["threshold"] = torch.full((F,), 0.4)
    activation = {"AutoEncoder": "relu", "AutoEncoderTopK": "topk"}.get(kind, "jumprelu")
    agrees(sae, w, activation, k=4, minus=kind != "JumpReluAutoEncoder")


class Sly:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_nothing_executes_on_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"config.json": {"trainer": {"dict_class": "AutoEncoder", "layer": 0}}}
    folder = write(tmp_path / "pt", config | {"ae.pt": {"bias": Sly()}})
    with pytest.raises(rl.InputError, match="tensors alone"):
        load_sae(folder)
    (tmp_path / "layer_1").mkdir()
    np.savez(tmp_path / "layer_1" / "params.npz", W_enc=np.array([Sly()], dtype=object))
    with pytest.raises(rl.InputError, match="tensors alone"):
        load_sae(tmp_path / "layer_1")
    assert "executed" not in capsys.readouterr().out


def test_what_cannot_be_read_is_refused(tmp_path: Path, unchecked: object) -> None:
    w = weights()
    config: dict[str, Any] = {"architecture": "standard", "metadata": {"hook_name": HOOK}}
    for n, (changed, tensors, sentence) in enumerate(
        [
            ({"architecture": "gated"}, w, "'gated'"),
            ({"normalize_activations": "layer_norm"}, w, "normalises activations"),
            ({}, without(w, "W_dec"), "W_dec"),
            ({}, w | {"b_enc": torch.zeros(F + 1)}, "do not belong together"),
            ({}, w | {"b_enc": torch.full((F,), torch.nan)}, "finite"),
            ({"architecture": "topk", "k": F + 1}, w, "1 to 40"),
        ]
    ):
        files = {"cfg.json": config | changed, "sae_weights.safetensors": tensors}
        with pytest.raises(rl.InputError, match=sentence):
            load_sae(write(tmp_path / str(n), files))
    with pytest.raises(rl.InputError, match="no folder"):
        load_sae(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(rl.InputError, match="holds no sparse autoencoder"):
        load_sae(tmp_path / "empty")


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(["relu", "jumprelu", "topk"]), st.booleans())
def test_what_is_saved_is_loaded(tmp_path_factory: Any, seed: int, kind: str, minus: bool) -> None:
    w = {name.lower(): tensor for name, tensor in weights(seed).items()}
    threshold = w.pop("threshold")
    sae = SparseAutoencoder(
        **w,
        hook="blocks.2.hook_attn_out",
        activation=kind,
        threshold=threshold if kind == "jumprelu" else None,
        k=5 if kind == "topk" else None,
        subtracts=minus,
    )
    again = load_sae(save_sae(sae, tmp_path_factory.mktemp("sae")))
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again.decode(sae.encode(x)), sae.decode(sae.encode(x)))
    assert again.place == (2, "attn_out")


def test_it_has_to_fit_the_model(llama: rl.Lens) -> None:
    w = {name.lower(): tensor for name, tensor in without(weights(), "threshold").items()}
    with pytest.raises(rl.InputError, match="12 wide"):
        SparseAutoencoder(**w, hook=HOOK, activation="relu").check(llama)
    wide = {
        "w_enc": torch.zeros(32, 4),
        "b_enc": torch.zeros(4),
        "w_dec": torch.zeros(4, 32),
        "b_dec": torch.zeros(32),
    }
    with pytest.raises(rl.InputError, match="4 blocks"):
        SparseAutoencoder(**wide, hook="blocks.3.hook_resid_post", activation="relu").check(llama)
    with pytest.raises(rl.InputError, match="hook_mlp_out"):
        SparseAutoencoder(**wide, hook="blocks.1.hook_mlp_out", activation="relu").check(llama)


def planted(n: int = 3000, d: int = 16, features: int = 24, active: int = 2):
    """Sums of a few of some directions, and the directions."""
    drawn = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(features, d, generator=drawn), dim=-1)
    acts = torch.zeros(n, features)
    chosen = torch.rand(n, features, generator=drawn).topk(active).indices
    acts.scatter_(1, chosen, 1 + torch.rand(n, active, generator=drawn))
    return acts @ rows + 0.5, rows


def test_training_finds_the_planted_features() -> None:
    x, rows = planted()
    sae = fit_topk(x, HOOK, n_features=32, k=2, steps=1500, batch=256, rate=3e-3)
    cosines = (torch.nn.functional.normalize(sae.w_dec, dim=-1) @ rows.T).amax(dim=0)
    assert (cosines > 0.95).float().mean() > 0.9
    assert sae.explained(x) > 0.9
    shuffled = torch.nn.functional.normalize(torch.randn(24, 16), dim=-1)
    chance = (torch.nn.functional.normalize(sae.w_dec, dim=-1) @ shuffled.T).amax(dim=0)
    assert chance.mean() < 0.9
    assert int((sae.encode(x) > 0).sum(dim=-1).max()) <= 2


def test_training_on_a_model(llama: rl.Lens) -> None:
    prompts = ["Explain how a river finds the sea.", "Who was here first?", "Prove it."] * 4
    sae = train_sae(llama, prompts, 2, n_features=48, k=4, steps=300, batch=32)
    assert sae.place == (2, "resid_pre")
    x = torch.cat([one[0, 1:] for one in rl.activations(llama, prompts, [2], "all")])
    assert sae.explained(x) > 0.5
    with pytest.raises(rl.InputError, match="k from 1"):
        fit_topk(x, HOOK, n_features=4, k=5)
