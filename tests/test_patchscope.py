import pytest

import oracles
import rolelens as rl
import tiny


def test_a_reading_is_plain_steered_text(lens: rl.Lens, architecture: str) -> None:
    vectors = rl.role_vectors(lens, {"a": tiny.PROMPTS}, base=tiny.OTHERS)["a"]
    model, tokenizer = tiny.reference(architecture), tiny.tokenizer()
    readings = rl.patchscope(lens, [vectors.at(1), vectors.at(3)], alpha=3.0, max_new_tokens=6)
    ids = oracles.chat_ids(tokenizer, "What does ♦ represent?")
    for reading, layer in zip(readings, (1, 3), strict=True):
        with oracles.added(model, layer, 3 * vectors.at(layer).vector):
            new = oracles.greedy(model, ids, 6)
        ends = [n for n, i in enumerate(new) if i in (1, 3)]
        expected = tokenizer.decode(new[: ends[0] if ends else None], skip_special_tokens=True)
        assert reading.text == expected.strip()
        assert reading.baseline == lens.generate([reading.prompt], max_new_tokens=6)[0]
    alone = rl.patchscope(lens, vectors.at(3), alpha=3.0, max_new_tokens=6)
    assert alone.text == readings[1].text
    assert alone.direction.layer == 3


def test_nothing_to_read_is_refused(llama: rl.Lens) -> None:
    with pytest.raises(rl.InputError, match="no directions to read"):
        rl.patchscope(llama, [])
