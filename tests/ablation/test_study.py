"""Study files: accepted keys and values, and one-line errors for the others."""

import pytest
import yaml

from maya_vlm.training.ablation.plan import plan_runs
from maya_vlm.training.ablation.statistics import mean_over_seeds, paired_by_seed
from maya_vlm.training.ablation.study import (
    STUDIES,
    Study,
    cells_of,
    find_study,
    main_measure,
    read_study,
)

GOOD = {
    "title": "t",
    "question": "q",
    "base": "mini",
    "seeds": [0, 1],
    "vary": {"model.projector_num_layers": [1, 2], "stages.pretrain.group_size": [1, 8]},
    "measures": [{"log": "mean_loss"}, {"log": "mean_accuracy", "main": True}],
}


def written(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**GOOD, **changes}.items() if v is not None}))
    return path


def test_every_combination_is_a_cell(tmp_path):
    study = read_study(written(tmp_path))
    assert [cell.name for cell in cells_of(study)] == [
        "projector_num_layers=1, group_size=1",
        "projector_num_layers=1, group_size=8",
        "projector_num_layers=2, group_size=1",
        "projector_num_layers=2, group_size=8",
    ]
    assert main_measure(study).log == "mean_accuracy"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, r"seeds: expected different seeds, found \[1, 1\]"),
        ({"seeds": []}, "seeds: expected different seeds"),
        ({"seeds": [-1]}, r"seeds\[0\]"),
        ({"vary": None}, "vary, cells: expected one of the two keys, found neither"),
        ({"cells": {"a": {}, "b": {}}}, "expected one of the two keys, found both"),
        ({"vary": {"seed": [1, 2]}}, "seed: expected another key, found one that the study sets"),
        ({"vary": {"model.dtype": ["float32"]}}, "model.dtype: expected two or more different"),
        ({"vary": None, "cells": {"a": {}}}, "cells: expected two or more, found 1"),
        ({"baseline": "c"}, r"baseline: expected a cell \(projector.*found 'c'"),
        ({"measures": []}, "measures: expected at least one"),
        ({"measures": [{}]}, r"measures\[0\]: expected either task or log"),
        (
            {"claim": {"measure": "a"}},
            r"claim.measure: expected the name of a measure \(.*found 'a'",
        ),
        (
            {"claim": {"measure": "mean_accuracy", "over": ["a"]}},
            r"claim.over: expected cells other than the baseline \(proj.*found 'a'",
        ),
        ({"measures": [{"task": "pope"}]}, r"measures\[0\].task: .*evaluate.tasks \(none\)"),
        (
            {"measures": [{"log": "a", "main": True}, {"log": "b", "main": True}]},
            "expected one main measure",
        ),
        ({"seedz": [1]}, "unknown key 'seedz'; did you mean 'seeds'"),
    ],
)
def test_a_bad_study_is_refused_in_one_line(tmp_path, changes, words):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=words) as error:
        read_study(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_recipe_is_refused_with_its_cell(tmp_path):
    path = written(tmp_path, vary={"model.projector_num_layers": [2, "two"]})
    with pytest.raises(
        ValueError, match=r"cell 'projector_num_layers=two': .*projector_num_layers"
    ):
        plan_runs(read_study(path), str(path), tmp_path)


def test_cells_that_are_the_same_run_are_refused(tmp_path):
    cells = {"a": {"stages.pretrain.args.logging_steps": 5}, "b": {}}
    path = written(tmp_path, vary=None, cells=cells)
    with pytest.raises(ValueError, match="cells 'a' and 'b': expected different runs"):
        plan_runs(read_study(path), str(path), tmp_path)


def test_a_run_is_named_by_content_and_not_by_place(tmp_path):
    """Check that equal data in another folder is the same run, and different data a different run."""
    import shutil

    from maya_vlm.training.recipe import PACKAGE

    tower = PACKAGE / "bases/mini/vision_tower"
    shutil.copytree(tower, tmp_path / "copied")
    keys = []
    for place in (tower, tmp_path / "copied"):
        path = written(tmp_path, set={"model.vision_tower": str(place)}, seeds=[0])
        keys.append([run.key for run in plan_runs(read_study(path), str(path), tmp_path)])
    assert keys[0] == keys[1]
    config = tmp_path / "copied/config.json"
    config.write_text(config.read_text() + "\n")
    path = written(tmp_path, set={"model.vision_tower": str(tmp_path / "copied")}, seeds=[0])
    changed = [run.key for run in plan_runs(read_study(path), str(path), tmp_path)]
    assert not set(changed) & set(keys[0])


def test_full_size_replaces_the_cells(tmp_path):
    full = {"base": "maya-8b/pretrain", "cells": {"a": {}, "b": {"stages.0.group_size": 1}}}
    study = read_study(written(tmp_path, full_size=full), full_size=True)
    assert study.base == "maya-8b/pretrain"
    assert [cell.name for cell in cells_of(study)] == ["a", "b"]
    with pytest.raises(ValueError, match=r"full_size: expected the keys .*found none"):
        read_study(written(tmp_path), full_size=True)


def test_an_unknown_study_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="expected a study's file or the name of a shipped"):
        find_study("no-such-study")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned_in_both_sizes(path, tmp_path):
    for full_size in (False, True):
        study = read_study(path, full_size)
        assert plan_runs(study, str(path), tmp_path)
        assert isinstance(study, Study)
        assert study.paper
        assert study.scope
        assert len(study.seeds) >= 3


def test_intervals_are_those_of_students_t():
    found = mean_over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.n) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.302652729749464 / 3**0.5)
    assert mean_over_seeds([1.0]) == (1, 1.0, None, None)
    # scipy.stats.ttest_rel([1, 2, 4], [0, 0, 1]): t = 3.464, p = 0.0742
    paired = paired_by_seed({0: 1.0, 1: 2.0, 2: 4.0}, {0: 0.0, 1: 0.0, 2: 1.0})
    assert paired is not None
    assert paired["p"] == pytest.approx(0.07418, abs=1e-5)
    assert paired_by_seed({0: 1.0}, {1: 1.0}) is None
    assert paired_by_seed({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0})["p"] == 0.0
