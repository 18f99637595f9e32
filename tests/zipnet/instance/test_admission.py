"""Who is let in, who is not, and that they hear why; lists that change while rounds go on."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from attestation.allowlist import AllowList, Entry, TcbPolicy, assemble, sign
from attestation.errors import (
    AttestationError,
    CollateralFormatError,
    CollateralRejected,
    CollateralUnavailable,
)
from tests.zipnet.instance.support import PATIENCE, Town, run, together, town
from zipnet.committee.state import Ending
from zipnet.demo import CLIENT, SERVER, clock
from zipnet.errors import Attestation, Refused
from zipnet.roles.client import ClientRole
from zipnet.unsafe_programs import Program

OTHER_SERVER = Program("server 2", "server")
OTHER_CLIENT = Program("client 2", "client")


def windowed(made: Town, number: int, previous: AllowList | None, *entries: Entry) -> bytes:
    """A list with windows of time, which all operators have signed."""
    payload = AllowList(
        number,
        made.operators.instance.deployment_id,
        int(time.time()),
        entries,
        TcbPolicy(),
        *((previous.digest,) if previous else ()),
    ).dumps()
    return assemble(payload, [sign(payload, key) for key in made.operators.keys.values()])


async def refused(client: ClientRole, made: Town, text: str) -> Attestation:
    with pytest.raises(Attestation) as caught:
        await asyncio.wait_for(made.say(client, text), PATIENCE)
    return caught.value


def test_nobody_seals_for_a_server_off_the_list() -> None:
    async def body() -> None:
        async with town(programs={"bravo": OTHER_SERVER}) as made:
            client = made.client_role()
            with pytest.raises(Attestation) as caught:
                await asyncio.wait_for(client.run(), PATIENCE)
            assert caught.value.rule == "mrtd"
            assert "operator bravo" in caught.value.message
            # Honest servers don't sign with it either, even if clients were there.
            bravo = made.id_of("bravo")
            for server in made.servers:
                if server.core.id != bravo:
                    await made.until(lambda server=server: bravo in server.judge.reasons)  # type: ignore[misc]
                    assert server.judge.reasons == {bravo: "mrtd"}
                    assert bravo not in server.judge.proven
            assert made.state.next_round == 1

    run(body())


def test_servers_sign_no_header_with_one_whose_program_left_the_list() -> None:
    async def body() -> None:
        programs = {"bravo": OTHER_SERVER}
        listed = (SERVER, OTHER_SERVER, CLIENT)
        async with town(programs=programs, listed=listed, clients=3, round_deadline_ms=800) as made:
            await made.say_until_landed(made.clients[0], "all is well")
            bravo = made.id_of("bravo")
            await made.push(made.operators.allow_list(2, SERVER, CLIENT))
            await made.until(lambda: made.endings()[-1] is not Ending.FINAL)
            # From the first header on that names the list.
            assert made.endings()[-1] is Ending.UNSIGNED
            assert 2 not in made.servers[0].judge.proven.get(bravo, ())
            await made.until(lambda: made.clients[0].refusal == "mrtd")
            error = await refused(made.clients[0], made, "to bravo as well?")
            assert "operator bravo" in error.message
            await made.check()

    run(body())


def test_a_client_off_the_list_hears_the_rule_and_others_go_on() -> None:
    async def body() -> None:
        async with town(clients=2) as made:
            stranger = made.client(OTHER_CLIENT)
            error = await refused(stranger, made, "let me in")
            assert error.rule == "mrtd"
            assert any(name in error.message for name in made.operators.keys)
            told = await together(
                [made.say(one, f"{at}") for at, one in enumerate(made.clients[:2])]
            )
            assert {one.outcome for one in told} == {"landed"}
            assert stranger.rounds == 0
            # It can't wait for better times with something to say, either.
            assert (await refused(stranger, made, "and now?")).rule == "mrtd"
            await made.check()

    run(body())


def test_the_list_rotates_while_rounds_go_on() -> None:
    async def body() -> None:
        async with town(clients=3) as made:
            old = list(made.clients)
            await made.say_until_landed(old[0], "in time")
            new = [made.client(OTHER_CLIENT) for _ in range(3)]
            for client in new:
                assert (await refused(client, made, f"too early {id(client)}")).rule == "mrtd"
            with pytest.raises(Refused) as caught:
                await made.push(made.operators.allow_list(1, SERVER, OTHER_CLIENT))
            assert caught.value.rule == "number-reused"
            # First both, then the new one only: nobody need stop.
            await made.push(made.operators.allow_list(2, SERVER, CLIENT, OTHER_CLIENT))
            await made.until(lambda: all(client.taking_part.is_set() for client in new))
            await made.say_until_landed(new[0], "both")
            await made.say_until_landed(old[0], "both too")
            await made.push(made.operators.allow_list(3, SERVER, OTHER_CLIENT))
            await made.until(lambda: all(client.refusal == "mrtd" for client in old))
            assert (await refused(old[0], made, "too late")).rule == "mrtd"
            before = made.state.next_round
            for client in new:
                await made.say_until_landed(client, f"news {id(client)}")
            await made.rounds(2)
            assert made.state.next_round > before
            assert set(made.endings()) == {Ending.FINAL}
            last = made.state.last_record
            assert last is not None
            assert last.record.header.list_number == 3
            assert last.record.clients == 3
            assert not made.errors
            await made.check()

    run(body())


def test_windows_of_a_list_go_by_the_committees_time() -> None:
    async def body() -> None:
        async with town(started=False) as made:
            begin = clock() // 1000
            retires = begin + 9
            await made.start((SERVER, CLIENT, OTHER_CLIENT))
            two = [made.client(), made.client()]
            leaves = made.client(OTHER_CLIENT)
            first = made.state.allow_list
            assert first is not None
            await made.say_until_landed(leaves, "still here")
            entries = [Entry(SERVER.measurement), Entry(CLIENT.measurement)]
            later = Entry(OTHER_CLIENT.measurement, retire_after=retires)
            await made.push(windowed(made, 2, None, *entries, later))
            await made.until(
                lambda: leaves.refusal == "list.window" or clock() // 1000 >= retires + 3
            )
            # By then it has left the rosters, at a header whose time is that of its end or later.
            await made.until(
                lambda: (
                    made.state.last_record is not None
                    and made.state.last_record.record.clients == 2
                )
            )
            assert made.state.time_ms >= retires * 1000
            records = [one.record for one in await made.records()]
            assert max(r.header.time_ms for r in records if r.clients == 3) < retires * 1000
            assert await made.say_until_landed(two[0], "without it")
            assert set(made.endings()) == {Ending.FINAL}
            error = await refused(leaves, made, "gone")
            assert error.rule
            await made.check()

    run(body())


def test_a_ticket_is_renewed_and_the_client_stays_in() -> None:
    async def body() -> None:
        async with town(clients=3) as made:
            client = made.clients[0]
            await made.say_until_landed(client, "with the first ticket")
            who, first = client._core.id, client._place.registration
            member = made.state.clients[who].member
            client._place.renew_ms = 0
            await made.until(lambda: made.state.clients[who].registration != first)
            assert made.state.clients[who].member == member
            await made.until(
                lambda: (
                    {v.registration for v in made.state.clients[who].vouchers.values()}
                    == {client._place.registration}
                )
            )
            await made.say_until_landed(client, "with the second ticket")
            assert made.state.clients[who].member == member
            await made.check()

    run(body())


@pytest.mark.parametrize(
    "error",
    [
        CollateralUnavailable("the service is down", rule="source.unreachable"),
        CollateralRejected("the service lies", rule="root-mismatch"),
        CollateralFormatError("the service babbles", rule="json"),
    ],
    ids=lambda error: error.rule,
)
def test_a_server_without_collateral_says_nothing_against_a_client(
    error: AttestationError, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        there = False

        async def fetch(_quote: bytes) -> None:
            if not there:
                raise error

        async with town(clients=2) as made:
            await made.say_until_landed(made.clients[0], "while the service is up")
            bravo = next(one for one in made.servers if one.core.id == made.id_of("bravo"))
            bravo.judge._admission = replace(bravo.judge._admission, fetch=fetch)
            late = made.client()
            await made.until(lambda: "can't be judged" in caplog.text)
            who = late._core.id
            assert made.state.clients[who].refusals == {}
            assert bravo.core.id not in made.state.clients[who].vouchers
            there = True
            bravo.judge.noted.set()
            await made.until(late.taking_part.is_set)
            await made.say_until_landed(late, "now that it is up again")
            await made.check()

    run(body())


def test_a_platform_that_is_not_allowed_is_refused() -> None:
    async def body() -> None:
        async def fetch(_quote: bytes) -> None:
            raise CollateralRejected("a platform of another model", rule="fmspc")

        async with town(clients=2) as made:
            await made.say_until_landed(made.clients[0], "before")
            bravo = next(one for one in made.servers if one.core.id == made.id_of("bravo"))
            bravo.judge._admission = replace(bravo.judge._admission, fetch=fetch)
            error = await refused(made.client(), made, "from another model")
            assert error.rule == "fmspc"

    run(body())
