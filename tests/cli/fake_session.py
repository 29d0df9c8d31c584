"""A session that trains nothing: it plays a job, so that the command line can be watched.

Run as a program, it is the `smlt` command with this session in place of the real one. The task's
parameters say how the job goes: `--param end=failed --param pace=0.05`.
"""

import asyncio
import sys

from smlt.cli import main
from smlt.control.progress import Progress, Summary
from smlt.errors import StoreUnreachableError, TaskError
from smlt.messages.worker import RankState

STEPS_PER_EPOCH = 20
TRACEBACK = 'Traceback (most recent call last):\n  File "train.py", line 9, in loss\nValueError: no'


class FakeSession:
    def __init__(self, config):
        self.config = config
        self.given = dict(text.split("=", 1) for text in config.params)
        self.progress = Progress(workers=config.workers, memory_mb=config.memory_mb)
        self._stop = asyncio.Event()
        self._kill = asyncio.Event()

    async def train(self):
        end = self.given.get("end", "completed")
        if end == "user":
            raise TaskError("train.py has no class 'Mnits': did you mean Mnist?")
        await self._start()
        total = self.progress.total_steps
        for step in range(1, total + 1):
            self._play(step)
            if end == "store" and step == 3:
                raise StoreUnreachableError("redis://here:1 did not answer for 15 s: is it up?")
            if end == "bug" and step == 3:
                raise ZeroDivisionError("a mistake of ours")
            if end == "failed" and step == 7:
                return self.summary("failed", "rank 2 raised ValueError at step 7: no.", TRACEBACK)
            if self._stop.is_set() and end != "hang":
                return self.summary("stopped", "It was stopped by the user.")
            if self._kill.is_set():
                return self.summary("stopped", "It was stopped at once.")
            await asyncio.sleep(float(self.given.get("pace", "0.002")))
        return self.summary("completed", "All steps are done.")

    async def request_stop(self):
        self.progress.state = "stopping"
        self._stop.set()

    async def stop_now(self):
        if self.given.get("deaf"):
            return
        self._kill.set()

    async def _start(self):
        progress = self.progress
        progress.notices.append("Memory is limited by a watchdog: cgroups are not permitted here.")
        progress.ranks = [RankState(rank=r, state="loading") for r in range(progress.workers)]
        await asyncio.sleep(20 * float(self.given.get("pace", "0.002")))
        progress.job_id = "20261122-101500-mnist"
        progress.state = "running"
        progress.generation = 1
        progress.epochs = self.config.epochs
        progress.total_steps = self.config.steps or STEPS_PER_EPOCH * (self.config.epochs or 1)

    def _play(self, step):
        progress = self.progress
        progress.step = step
        progress.epoch = (step - 1) // STEPS_PER_EPOCH
        progress.loss = 2.3 * 0.97**step
        progress.metrics = {"accuracy": 1 - 0.9 * 0.97**step}
        progress.steps_per_s = 12.345
        progress.samples_per_s = 12.345 * self.config.batch_size
        progress.elapsed_s = step / progress.steps_per_s
        progress.billed_gb_s = progress.elapsed_s * progress.workers * 1.7275
        progress.cost_usd = progress.billed_gb_s * 0.0000166667
        progress.ranks = [
            RankState(rank=r, state="training", step=step, pid=4000 + r)
            for r in range(progress.workers)
        ]
        progress.stalled = ""
        if STEPS_PER_EPOCH // 2 <= step % STEPS_PER_EPOCH < 15:
            progress.stalled = "rank 0 waits for shard 3 of rank 1"
            progress.ranks[1:2] = [RankState(rank=1, state="evaluating", step=step, pid=4001)]
        if step % STEPS_PER_EPOCH == 0:
            progress.evaluation = {"accuracy": 0.9 + 0.01 * progress.epoch, "loss": 0.3}

    def summary(self, state, message, traceback=""):
        progress = self.progress
        progress.state = state
        model = f".smlt/jobs/{progress.job_id}/model.safetensors" if state != "failed" else None
        return Summary(
            job_id=progress.job_id,
            state=state,
            metrics={"loss": progress.loss, "bad": float("nan"), **progress.evaluation},
            steps=progress.step,
            epochs=progress.epoch + 1,
            seconds=progress.elapsed_s,
            billed_gb_s=progress.billed_gb_s,
            cost_usd=progress.cost_usd,
            cost_is_estimate=True,
            workers=progress.workers,
            memory_mb=progress.memory_mb,
            generations=1,
            weights_digest="sha256:" + "ab" * 32 if model else None,
            model_path=model,
            best_model_path=None,
            checkpoint="file:///run/objects/checkpoints/1/7" if state == "failed" else None,
            message=message,
            traceback=traceback,
            notices=progress.notices,
        )


if __name__ == "__main__":
    sys.exit(main(open_session=FakeSession))
