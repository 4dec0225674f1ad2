"""Progress of a part says which of how many it is."""

from synq.runtime.progress import part_of, places, progress


def shown(capsys):
    list(progress(range(2), "synthesis"))
    return capsys.readouterr().err


def test_a_part_is_named_by_its_place(capsys):
    group, alone = places(3, "group")[1], places(1)[0]
    with part_of(group), part_of(places(20)[4]):
        assert "group 2 of 3, batch 5 of 20, synthesis: 2/2" in shown(capsys)
    with part_of(alone):
        assert shown(capsys).startswith("synthesis: ")
    assert shown(capsys).startswith("synthesis: ")
