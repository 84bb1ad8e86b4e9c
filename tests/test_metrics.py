"""Every metric set against cases computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import classification_report

from train.metrics import METRIC_SETS, compute


def array(*values):
    return np.array(values, dtype=np.float32)


def test_mosi_by_hand():
    truth = array(-3.0, -1.0, 0.0, 1.0, 3.0)
    guess = array(-4.0, -0.4, -0.1, 1.5, 2.4)
    figures = compute("mosi", guess, truth)
    assert figures["MAE"] == pytest.approx((1 + 0.6 + 0.1 + 0.5 + 0.6) / 5)
    assert figures["Corr"] == pytest.approx(np.corrcoef(guess, truth)[0, 1], abs=1e-6)
    # Rounded: -3 -0 -0 2 2 against -3 -1 0 1 3; clipped to 2: -2 -0 -0 2 2 against -2 -1 0 1 2.
    assert figures["Acc7"] == pytest.approx(2 / 5)
    assert figures["Acc5"] == pytest.approx(3 / 5)
    # has0: - - - + + against - - + + +.  non0: - - + + against - - + +.
    assert figures["Acc2_has0"] == pytest.approx(4 / 5)
    f1_negative, f1_positive = 2 * 2 / (2 * 2 + 1), 2 * 2 / (2 * 2 + 1)
    assert figures["F1_has0"] == pytest.approx(2 / 5 * f1_negative + 3 / 5 * f1_positive)
    assert figures["Acc2_non0"] == figures["F1_non0"] == 1.0


def test_mosi_rounds_half_to_even():
    figures = compute("mosi", array(0.5, 1.5, 2.5), array(0.0, 2.0, 2.0))
    assert figures["Acc7"] == 1.0
    figures = compute("mosi", array(-0.5, -1.5, -2.5, 0.51), array(0.0, -2.0, -2.0, 1.0))
    assert figures["Acc7"] == 1.0
    # The truth is rounded too, and labels between whole numbers are common.
    figures = compute("mosi", array(0.0, 2.0, 2.0), array(0.5, 1.5, 2.5))
    assert figures["Acc7"] == figures["Acc5"] == 1.0


def test_mosi_errors_are_measured_before_clipping():
    figures = compute("mosi", array(5.0, -5.0), array(3.0, -3.0))
    assert figures["MAE"] == 2.0
    assert figures["Acc7"] == figures["Acc5"] == 1.0


def test_mosi_drops_only_exact_zeros():
    # A truth of 0: has0 counts it among the not negative, non0 leaves it out.
    figures = compute("mosi", array(-1.0, 1.0, -1.0), array(0.0, 1.0, -0.2))
    assert figures["Acc2_has0"] == pytest.approx(2 / 3)
    assert figures["Acc2_non0"] == figures["F1_non0"] == 1.0
    figures = compute("mosi", array(0.0, -1.0), array(-0.0, -1.0))
    assert figures["Acc2_has0"] == 1.0


def test_mosi_zero_is_a_guess_of_not_negative_only_with_has0():
    figures = compute("mosi", array(0.0, 0.0), array(1.0, -1.0))
    assert (figures["Acc2_has0"], figures["Acc2_non0"]) == (0.5, 0.5)
    figures = compute("mosi", array(0.0, 0.0), array(1.0, 1.0))
    assert (figures["Acc2_has0"], figures["Acc2_non0"]) == (1.0, 0.0)


def test_sims_by_hand():
    truth = array(-1.0, -0.7, -0.1, 0.0, 0.1, 0.7, 1.0)
    guess = array(-2.0, -0.6, -0.2, 0.05, 0.2, 0.7, 0.5)
    figures = compute("sims", guess, truth)
    assert figures["MAE"] == pytest.approx((0 + 0.1 + 0.1 + 0.05 + 0.1 + 0 + 0.5) / 7, abs=1e-6)
    # Five bins, right-closed: truth 0 0 1 2 2 3 4, guess 0 1 1 2 3 3 3.
    assert figures["Acc5"] == pytest.approx(4 / 7)
    # Three: truth 0 0 0 1 1 2 2, guess 0 0 0 1 2 2 2.
    assert figures["Acc3"] == pytest.approx(6 / 7)
    # Two, 0 negative: truth - - - - + + +, guess - - - + + + +.
    assert figures["Acc2"] == pytest.approx(6 / 7)
    assert figures["F1"] == pytest.approx(4 / 7 * (6 / 7) + 3 / 7 * (6 / 7))


def test_sims_clips_before_everything():
    figures = compute("sims", array(3.0, -3.0, 0.5), array(1.0, -1.0, 0.5))
    assert figures["MAE"] == 0.0
    assert figures["Corr"] == pytest.approx(1.0)
    assert figures["Acc5"] == figures["Acc3"] == figures["Acc2"] == figures["F1"] == 1.0


def test_sims_zero_is_negative():
    figures = compute("sims", array(0.0, 0.0), array(-0.2, 0.2))
    assert figures["Acc2"] == 0.5
    assert figures["Acc3"] == 0.0


def test_mosei_emotion_by_hand():
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    guess = np.array([[1, 0], [0, 1], [0, 0], [1, 0]])
    figures = compute("mosei_emotion", guess, truth, ("happy", "fear"))
    assert figures["nAcc_happy"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert figures["bF1_happy"] == pytest.approx(1 / 2)
    assert figures["wF1_happy"] == pytest.approx(1 / 2)
    assert math.isnan(figures["nAcc_fear"])  # no utterance shows fear: no true positive rate
    assert figures["nAcc_average"] == figures["nAcc_happy"]
    assert figures["wF1_fear"] == pytest.approx(2 * 3 / (2 * 3 + 1))
    assert figures["bF1_average"] == pytest.approx(1 / 4)


CLASSES = ("a", "b", "c")
TRUTH, GUESS = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
F1 = {"a": 4 / 6, "b": 2 / 5, "c": 0.0}
WEIGHTED = (3 * F1["a"] + 2 * F1["b"] + 1 * F1["c"]) / 6


def test_meld_by_hand():
    figures = compute("meld", GUESS, TRUTH, CLASSES)
    assert figures["wAcc"] == pytest.approx(3 / 6)
    assert figures["wF1"] == pytest.approx(WEIGHTED)
    assert [figures[f"F1_{c}"] for c in CLASSES] == pytest.approx(list(F1.values()))


def test_iemocap_by_hand():
    figures = compute("iemocap", GUESS, TRUTH, CLASSES)
    assert figures["sAcc_a"] == pytest.approx(4 / 6)
    assert figures["sAcc_b"] == pytest.approx(3 / 6)
    assert figures["sAcc_c"] == pytest.approx(5 / 6)
    assert figures["sAcc_average"] == pytest.approx(12 / 18)
    assert figures["bF1_average"] == pytest.approx(sum(F1.values()) / 3)
    assert (figures["wAcc"], figures["wF1"]) == pytest.approx((3 / 6, WEIGHTED))


def test_iemocap_in_conversation():
    figures = compute("iemocap_conversation", GUESS, TRUTH, CLASSES)
    assert list(figures) == ["wAcc", "wF1", "F1_a", "F1_b", "F1_c"]
    assert figures == compute("meld", GUESS, TRUTH, CLASSES)


def test_a_class_absent_from_the_split():
    truth = np.array([0, 0, 1])
    # c is nowhere: its F1 is undefined and no average counts it.
    figures = compute("iemocap", np.array([0, 1, 1]), truth, CLASSES)
    assert math.isnan(figures["bF1_c"])
    assert figures["bF1_average"] == pytest.approx(2 / 3)
    assert (figures["sAcc_c"], figures["sAcc_average"]) == pytest.approx((1.0, 7 / 9))
    assert figures["wF1"] == pytest.approx(2 / 3)
    assert math.isnan(compute("meld", np.array([0, 1, 1]), truth, CLASSES)["F1_c"])
    # c is predicted although no utterance shows it: a wrong prediction, F1 0.
    figures = compute("iemocap", np.array([0, 2, 1]), truth, CLASSES)
    assert figures["bF1_c"] == 0.0
    assert figures["bF1_average"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    figures = compute("emotion", np.array([0, 2, 1]), truth, CLASSES)
    assert figures["UAR"] == pytest.approx((1 / 2 + 1) / 2)  # recall of c is undefined
    assert figures["macroF1"] == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_emotion_by_hand():
    figures = compute("emotion", GUESS, TRUTH, CLASSES)
    assert figures["Acc"] == pytest.approx(3 / 6)
    assert figures["UAR"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert figures["wF1"] == pytest.approx(WEIGHTED)
    assert figures["macroF1"] == pytest.approx(sum(F1.values()) / 3)


def test_binary_by_hand():
    truth, guess = np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0])
    figures = compute("binary", guess, truth, ("no", "yes"))
    assert figures["wPrecision"] == pytest.approx(3 / 4 * 1 + 1 / 4 * 1 / 2)
    assert figures["wRecall"] == figures["Acc"] == pytest.approx(3 / 4)
    assert figures["wF1"] == pytest.approx(3 / 4 * 4 / 5 + 1 / 4 * 2 / 3)


def test_constant_predictions_and_single_classes():
    figures = compute("mosi", array(0.5, 0.5, 0.5), array(-1.0, 0.0, 2.0))
    assert math.isnan(figures["Corr"])
    figures = compute("mosi", array(0.5, 0.1), array(0.0, 0.0))
    assert math.isnan(figures["Acc2_non0"])
    assert math.isnan(figures["F1_non0"])
    for name in ("meld", "emotion", "binary", "iemocap"):
        ones = np.ones(4, dtype=int)
        figures = compute(name, ones, ones, CLASSES)
        assert figures["wF1"] == 1.0
    none = np.zeros((3, 1), dtype=int)
    figures = compute("mosei_emotion", none, none, ("fear",))
    assert math.isnan(figures["nAcc_average"])
    assert math.isnan(figures["bF1_average"])
    assert figures["wF1_average"] == 1.0
    figures = compute("mosei_emotion", none + 1, none + 1, ("fear",))
    assert math.isnan(figures["nAcc_average"])  # no true negative rate either
    assert figures["bF1_average"] == figures["wF1_average"] == 1.0


def test_always_one_class_of_two():
    figures = compute("binary", np.ones(4, dtype=int), np.array([1, 1, 1, 0]), ("no", "yes"))
    assert figures["wPrecision"] == pytest.approx(3 / 4 * 3 / 4)
    assert figures["wRecall"] == figures["Acc"] == pytest.approx(3 / 4)
    assert figures["wF1"] == pytest.approx(3 / 4 * 6 / 7)
    assert compute("binary", np.zeros(1, dtype=int), np.zeros(1, dtype=int))["wF1"] == 1.0


def test_a_score_on_any_scale():
    figures = compute("score", np.array([10.0, 20, 60]), np.array([20.0, 20, 50]))
    # errors 10, 0, 10; means 30 and 30; variances 1400/3 and 600/3; covariance 900/3
    assert figures["MAE"] == pytest.approx(20 / 3)
    assert figures["RMSE"] == pytest.approx((200 / 3) ** 0.5)
    assert figures["CCC"] == pytest.approx(1800 / 2000)
    assert figures["Corr"] == pytest.approx(900 / (1400 * 600) ** 0.5)
    constant = compute("score", np.full(3, 2.0), np.full(3, 2.0))
    assert constant["MAE"] == 0
    assert np.isnan(constant["CCC"])


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(int, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 2)),
)
def test_one_class_agrees_with_the_report_of_scikit_learn(pairs):
    truth, guess = pairs.T
    figures = compute("meld", guess, truth, CLASSES)
    report = classification_report(
        truth, guess, labels=[0, 1, 2], target_names=CLASSES, output_dict=True, zero_division=0
    )
    assert figures["wF1"] == pytest.approx(report["weighted avg"]["f1-score"])
    for name in CLASSES:
        assert np.nan_to_num(figures[f"F1_{name}"]) == pytest.approx(report[name]["f1-score"])


@pytest.mark.parametrize("name", sorted(METRIC_SETS))
def test_bad_input(name):
    good, bad = np.zeros(2), np.array([0.0, np.nan])
    for decided, truth in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match=r"1 of the (predictions|truth) are NaN"):
            compute(name, decided, truth, CLASSES)
    with pytest.raises(ValueError, match="cannot compare"):
        compute(name, np.zeros(0), np.zeros(0), CLASSES)
    with pytest.raises(ValueError, match="cannot compare"):
        compute(name, np.zeros(3), good, CLASSES)


def test_unknown_set():
    with pytest.raises(ValueError, match="choose from mosi, sims"):
        compute("mos", np.zeros(2), np.zeros(2))
