"""The comparison with version 0.1 notices what differs; the comparison itself is a script, run by hand."""

from __future__ import annotations

import numpy as np
from safety_net import differences

ONE = {"clip/block8": np.arange(6, dtype=np.float16).reshape(2, 3), "names": np.array(["a", "b"], object)}


def test_equal_arrays_give_no_line() -> None:
    assert not list(differences(ONE, {name: values.copy() for name, values in ONE.items()}))


def test_a_changed_value_a_changed_type_and_a_missing_array_give_a_line_each() -> None:
    other = {"clip/block8": ONE["clip/block8"] + np.float16(.5)}
    value, missing = differences(ONE, other)
    assert "largest difference 0.5" in value
    assert missing == "names: only in 0.1"
    kind, _ = differences(ONE, {"clip/block8": ONE["clip/block8"].astype(np.float32)})
    assert "float32" in kind
