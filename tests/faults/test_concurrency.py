"""Two rollups at once queue for the warehouse, and leave what one after the other leaves."""

from __future__ import annotations

from faults.house import House
from faults.test_kills import CHANGES, KILLED
from support import days

OVERLAPPING = days("2024-03-31", "2024-04-02")


def test_two_rollups_at_once(house: House) -> None:
    house.put_back()
    house.database.execute(CHANGES)
    house.run(KILLED)
    house.run(OVERLAPPING)
    in_turn = house.state()

    house.put_back()
    house.database.execute(CHANGES)
    running = [house.start(KILLED), house.start(OVERLAPPING)]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    assert house.asks_for_nothing()
    assert house.state().differences(in_turn) == {}
    house.assert_at_rest()
