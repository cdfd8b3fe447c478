from raygeo.geometry.weights.conditions import Condition, configurations


def test_seeds_that_differ_are_told_apart():
    one = Condition("sft", "lr 1", 0, 0)
    others = [Condition("dpo", "lr 2", 0, 0), Condition("", "", 1, 0), Condition("", "", 0, 1), Condition("", "", 1, 1)]
    assert [one.seeds(other) for other in others] == ["same", "order", "init", "both"]


def test_a_configuration_is_a_loss_with_its_settings():
    conditions = [
        Condition(*c, None) for c in [("a", "x", 0), ("b", "x", 0), ("a", "y", 0), ("a", "x", 1), ("b", "x", 2)]
    ]
    assert configurations(conditions) == [[0, 3], [1, 4], [2]]
