"""What is looked at while a simulated job runs, and at its end: the promises of the protocol."""

from __future__ import annotations

from functools import lru_cache

import msgpack

from smlt.control.job import Job
from smlt.io import checkpoint
from smlt.io.keys import JobObjects
from smlt.io.memory_objects import MemoryObjectStore
from smlt.io.parameter_store import CARRIED
from smlt.io.weights import read_weights
from smlt.messages.job import EXACT, Position
from tests.simulation import walk
from tests.simulation.plan import STOPS

_course = lru_cache(walk.course)
_SLACK_S = 1.5
"""For a notice to arrive."""
_INSTANT_S = 0.1
_MISSING = msgpack.packb("missing")
"""The kind of a failure: a rank's shard did not come."""


class Witness:
    """Speaks up by ``world.violated``."""

    def __init__(self, world) -> None:
        plan, spec = world.plan, world.spec
        self._world = world
        self.expected = _course(
            plan.size,
            spec.epochs,
            spec.seed,
            tests=plan.tests,
            until=plan.until,
            fractions=spec.params["fractions"],
            given=plan.starts_from,
        )
        self.drawn = {}
        """By generation: its parent, as it was first written."""
        self.reached = {}
        """By generation: the most training steps that one of its ranks has applied."""
        self._over = set()
        """Generations with which the job has ended: the fencing token shuts out what is left."""
        self._agreed = {}
        self._writers = {}
        """Of each frame: the only process that may write it."""
        self._ranks = {}
        """By generation: the ranks that have taken a step."""
        self._last_step = {}
        """By generation whose marker is lost: the step that may have been under way then."""
        self._beat = 0.0
        self._client = None
        self._token = self._newest = 0
        self._left_at = {}

    def trained(self, parent) -> int:
        """Training steps done in a generation's parent."""
        return self.expected.trained[parent["step"]] if parent else 0

    def state_seen(self, environment, what: str, steps: int, bits: bytes) -> None:
        """A rank has loaded a state, or taken a step."""
        world, generation = self._world, environment.generation
        world.trace(
            environment.name,
            f"rank {environment.rank} of generation {generation} {what} step {steps}",
        )
        self.reached[generation] = max(steps, self.reached.get(generation, 0))
        if what == "applied":
            self._ranks.setdefault(generation, set()).add(environment.rank)
            if steps > self._last_step.get(generation, steps):
                world.violated(f"{environment.name} goes on in a generation that the store lost")
        states = self.expected.states
        if self._world.troubles.flipped is not None:
            return  # the means carry on what is wrong, until the alarm is heard
        if steps >= len(states) or bits != states[steps]:
            world.violated(
                f"{environment.name} has other weights at step {steps} than an undisturbed run"
            )

    def written(self, process, command) -> None:
        """A write has reached the parameter store."""
        generation = getattr(process, "generation", None)
        key = command[3] if command[0] == b"EVAL" else command[1]
        written = _of_one_writer(command)
        if written and self._writers.setdefault(written, process) is not process:
            first = self._writers[written].name
            self._world.violated(f"{process.name} writes {written.decode()}, as {first} does")
        numbered = int(key.split(b"{", 1)[1].split(b"}", 1)[0].rsplit(b":", 1)[1])
        if generation is not None and numbered not in process.generations:
            self._world.violated(f"{process.name}, of {generation}, wrote {key.decode()}")
        if command[0] == b"XADD" and b"left" in command:
            self._leaves(process, generation, int(command[command.index(b"reasons") + 1]))
        if command[0] == b"EVAL" and key.endswith(b":abort"):
            self._calls_for_abort(process, generation, command[6])

    def lost(self, server) -> None:
        """A server has forgotten everything: no step that needs it can be done any more."""
        world = self._world
        for generation, ranks in self._ranks.items():
            if len(world.servers) == 1 and len(ranks) > 1 and server.has_keys_of(generation):
                self._last_step.setdefault(generation, self.reached[generation] + 1)

    def _leaves(self, process, generation: int, reasons: int) -> None:
        self._world.trace(process.name, f"says that it leaves, reasons {reasons}")
        if reasons:
            agreed = self._agreed.setdefault(generation, set())
            agreed.add((process.steps, reasons))
            if len(agreed) > 1:
                self._world.violated(f"ranks agreed to stop, but differ: {agreed}")

    def _calls_for_abort(self, process, generation, failure: bytes) -> None:
        world = self._world
        world.trace(process.name, f"calls for an abort: {failure[:160]!r}")
        if b"handover" in failure:
            # An evaluation, too, is something gained.
            evaluated = world.plan.tests and process.steps % walk.EPOCH == 0
            if not process.moves and not evaluated:
                world.violated(f"{process.name} cuts a generation that has gained nothing")
        elif world.plan.is_peaceful:
            world.violated(f"{process.name} aborts, although nothing has gone wrong")
        elif _MISSING in failure and world.plan.lets_ranks_be_heard:
            world.violated(f"{process.name} waits in vain, although all ranks were heard")
        if b"at once" in failure and world.plan.harms <= STOPS:
            world.outside(world.spec.limits.stop_s + _SLACK_S, self._all_gone, world.loop.now)

    def _all_gone(self, since: float) -> None:
        """A stop at once is bounded: what had begun by then has ended."""
        late = [env.name for env in self._world.cloud.running if env.began <= since]
        if late:
            self._world.violated(f"{late} outlive a stop at once")

    def stored(self, process, key: str) -> None:
        """An object has been written."""
        world = self._world
        if key == JobObjects(world.job_id).state:
            state = world.objects.document(key)
            number = state["generation"]
            self._check_lead(process, state)
            if number and number not in self.drawn:
                self.drawn[number] = state["parent"]
                world.trace(process.name, f"draws generation {number} from {state['parent']}")
                self._check_loss(number - 1, state["parent"])
            elif state["status"] != "running":
                self._over.add(number)
            elif number and state["parent"] != self.drawn[number] and number not in self._over:
                world.violated(f"the parent of generation {number} has changed")
        elif key.endswith("/manifest.json"):
            document = world.objects.document(key)
            world.trace(process.name, f"commits step {document['step']}")
            there = set(world.objects.keys())
            missing = [part["key"] for part in document["parts"] if part["key"] not in there]
            if missing and not world.troubles.rotten:
                world.violated(f"{key} is committed without {missing}")

    def _check_lead(self, process, state) -> None:
        """The lead goes to another client only when the one before has not been heard of."""
        world, now = self._world, self._world.loop.now
        if (state["token"], state["generation"]) < (self._token, self._newest):
            world.violated(f"{process.name} takes the job back to an older state")
        self._token, self._newest = state["token"], state["generation"]
        client = state["client"] and state["client"]["host"]
        lives = now - self._beat < world.spec.limits.hold_s - _INSTANT_S
        if lives and client and self._client and client != self._client:
            world.violated(f"{client} takes over from {self._client}, who lives")
        if client != self._client or (client and process.name.startswith(client)):
            self._client, self._beat = client, now

    def left(self, environment, result) -> None:
        """An invocation has returned."""
        self._world.trace(environment.name, f"returns {result}")
        in_peace = result["status"] == "left" and result["failure"] is None
        if in_peace and environment.steps is not None:
            held = self._left_at.get(environment.generation, 0)
            self._left_at[environment.generation] = max(held, environment.steps)

    def _check_loss(self, generation: int, parent) -> None:
        """Where a rank has left in peace, or no rank has died, its state is not lost."""
        world = self._world
        held = self._left_at.get(generation, 0)
        if world.plan.spares_the_ranks:
            held = max(held, self.reached.get(generation, 0))
        at = self.trained(parent)
        if at < held and not world.troubles.rotten:
            world.violated(
                f"generation {generation} was left at step {held}, and goes on from {at}"
            )

    def judge(self, outcome) -> None:
        """The job has ended: was it allowed to end so?"""
        harms, managed = self._world.plan.harms, self._world.plan.managed
        if self._world.troubles.flipped is not None:
            self._judge_alarm(outcome)
            return
        if outcome.status == "completed":
            return
        if outcome.status == "stopped" and (harms & STOPS or managed):
            return
        kind = outcome.failure.kind if outcome.failure else ""
        unreachable = {"partition", "restart", "hang", "refuse", "client_freezes"}
        excused = (
            (kind == "space" and harms & {"full", "evict"})
            or (kind == "unreachable" and harms & unreachable)
            or ("no memory left" in outcome.message and "full" in harms)
            or (kind in ("parent", "checkpoint") and self._world.troubles.rotten)
            or (kind == "cloud" and "cloud_gone" in harms)
            or (kind == "host" and self._world.plan.unlike)
            or ("refuses user, password" in outcome.message and "refuse" in harms)
            or ("cannot be trusted over TLS" in outcome.message and "refuse" in harms)
            or ("does not speak RESP" in outcome.message and "babble" in harms)
            or ("refused a command" in outcome.message and "babble" in harms)
        )
        if not excused:
            self._world.violated(f"the job ended as {outcome.status}: {outcome.message}")

    def _judge_alarm(self, outcome) -> None:
        """A bit was flipped in a worker's memory: the job ends before anything of it is saved."""
        environment, plan = self._world.troubles.flipped, self._world.plan
        is_outvoted = plan.workers > 2 and plan.determinism != EXACT
        kind = outcome.failure.kind if outcome.failure else ""
        if outcome.status == "completed" or kind != "diverged":
            self._world.violated(f"a bit was flipped, and the job ended as {outcome.status}")
        elif is_outvoted and f"rank {environment.rank} differs" not in outcome.message:
            self._world.violated(f"rank {environment.rank} was damaged, but {outcome.message}")

    async def check_what_is_kept(self, outcome) -> None:
        """Every manifest leads to the state of its step; the weights are the right ones."""
        world = self._world
        for server in world.servers:
            if server.unbounded():
                world.violated(f"keys would never expire: {server.unbounded()}")
        plain = MemoryObjectStore(world.name)
        keys = world.objects.keys(JobObjects(world.job_id).checkpoints)
        for key in (key for key in keys if key.endswith("/manifest.json")):
            *_, generation, step, _ = key.split("/")
            at = Position(generation=int(generation), step=int(step))
            if (at.generation, at.step) in world.troubles.rotten:
                continue
            state = await checkpoint.read(plain, world.job_id, at)
            if not state.manifest.info.get("host"):
                world.violated(f"{key} does not say on what host the job began")
            bits = state.tensors["w"].data.tobytes() + state.tensors["m"].data.tobytes()
            if bits != self.expected.at(at.step):
                world.violated(f"{key} holds other weights than an undisturbed run")
        if outcome is not None and outcome.status == "completed":
            wanted = {JobObjects(world.job_id).model: self.expected.states[-1]}
            if world.spec.keep_best:
                wanted[JobObjects(world.job_id).best] = self.expected.best
            for key, bits in wanted.items():
                found = await read_weights(plain, key)
                if found["w"].data.tobytes() != bits[: 4 * world.plan.size]:
                    world.violated(f"{key} has other weights than in an undisturbed run")

    async def remove_job(self) -> None:
        """What somebody removes at last is out of everybody's reach before it is deleted."""
        world = self._world
        if world.objects.keys(JobObjects(world.job_id).state):
            job = await Job.load(MemoryObjectStore(world.name), world.job_id)
            await job.remove()
            if world.objects.document(JobObjects(world.job_id).state)["status"] != "removed":
                world.violated("the job is removed, and can still be taken over")


def _of_one_writer(command) -> bytes:
    """Name what a command writes if only one process may: a frame, or a rank's lease."""
    if command[0] == b"SET" and command[1].rsplit(b":", 1)[1] not in (b"marker", b"client"):
        return command[1]
    fields = command[command.index(b"*") + 1 :] if command[0] == b"XADD" else []
    if CARRIED.encode() not in fields[::2]:
        return b""
    return command[1] + b" " + b"/".join(fields[1:8:2])
