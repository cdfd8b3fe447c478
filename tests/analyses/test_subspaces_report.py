from view_cases import axes_of, titles, view_of

from raygeo.analyses.subspaces import report


def test_angles_are_medians_of_extremes_beside_the_null():
    rows = [
        {"run_a": "b", "run_b": "sft", "module": module, "layer": 4, "side": "left", "k": 2}
        | {"index": index, "angle_degrees": angle, "null_degrees": 70.0 + 15 * index}
        for module, angles in {"q": (10.0, 40.0), "k": (20.0, 60.0), "v": (24.0, 89.0)}.items()
        for index, angle in enumerate(angles)
    ]
    narrower = [row | {"k": 1, "angle_degrees": 1.0} for row in rows if row["index"] == 0]
    smallest, largest = axes_of(report.angle_profile, view_of(subspaces=rows + narrower))
    assert titles([smallest]) == ["smallest angle, left (output space), degrees"]
    assert [line.get_ydata().item() for line in smallest.lines] == [20.0, 70.0]
    assert [line.get_ydata().item() for line in largest.lines] == [60.0, 85.0]
