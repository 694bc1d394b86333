"""What a run writes to keep: checkpoints, the best weights, the model folder; whole or not at all.

All ranks gather the weights, rank 0 alone writes. A full disk costs a save, never the run: what was saved
before stays, and the next save tries again. Read next: state, checkpoint/folder.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.adapter import save_adapter
from ..checkpoint.folder import NotSaved, commit, recover, remove, sweep
from ..checkpoint.hub import resolve
from ..checkpoint.huggingface import load_config, save_model
from ..checkpoint.tensors import load_tensors
from . import ledger, state
from .card import model_card
from .evaluate import Best
from .parts import RunParts
from .report import Metrics


class Saver:
    """Commits what is to stay of a run, and remembers why a save failed."""

    def __init__(self, run: RunParts) -> None:
        """Open the run's files."""
        self.run = run
        self.unsaved: str | None = None
        """Why the last save failed, or None."""
        self.fingerprint = ""
        """Of the weights in the model folder."""
        self.seconds = 0.1 + 12 * run.expected.learned / 300e6
        """What a save takes: a guess, and then as measured."""
        if run.world.is_first:
            folder = run.folder
            folder.path.mkdir(parents=True, exist_ok=True)
            recover(folder.model)
            recover(folder.best)
            sweep(folder.path)
            folder.settings.write_text(run.settings.to_toml())
            run.report.write_to(Metrics(folder.path, list(run.settings.log), run.settings.to_dict()))

    def save(self, chosen: Best | None, facts: ledger.RunFacts) -> None:
        """Commit a checkpoint and the model folder, so that a run killed later leaves a model that can be
        used.
        """
        started = time.monotonic()
        weights, saved = self.checkpoint()
        if saved:
            self.write_model(weights, chosen, facts)
        self.seconds = time.monotonic() - started

    def checkpoint(self) -> tuple[state.Weights, bool]:
        """Commit where the run stands; the weights, and whether they were saved."""
        gc.collect()
        run, self.unsaved = self.run, None
        weights = state.gather(run.model, run.optimizers, run.world)

        def write() -> Path:
            run.position.joules, run.position.elapsed = run.energy.joules(), run.clock.elapsed()
            return state.save(run.folder.checkpoints, weights, run.position, run.settings.keep)

        return weights, self._commit(write)

    def write_model(self, weights: state.Weights, chosen: Best | None, facts: ledger.RunFacts) -> None:
        """Commit the model folder: the best weights where they were chosen, else these."""

        def write() -> Path:
            run, model = self.run, weights.model
            if chosen is not None:
                model = load_tensors(run.folder.best / state.WEIGHTS)
            self.fingerprint = state.fingerprint(model)
            card = model_card(ledger.account(facts))
            base, tokenizer = run.settings.model.weights, run.task.tokenizer
            with commit(run.folder.model) as folder:
                if run.settings.method == "lora" and base is not None:
                    family = load_config(resolve(base))[1]
                    save_adapter(folder, run.model, base=base, family=family, weights=model, card=card,
                                 tokenizer=tokenizer, base_hash=run.position.base_hash)  # fmt: skip
                else:
                    save_model(folder, run.model, tokenizer, run.task.generation, card, weights=model)
            return run.folder.model

        self._commit(write)

    def keep_best(self, best: Best) -> bool:
        """Write down the weights as they are now, the best so far; whether it could be done."""
        weights = state.gather_model(self.run.model, self.run.world)
        return self._commit(lambda: state.save_best(self.run.folder.best, weights, best))

    def forget_best(self) -> None:
        """Take the best weights away where the last ones are no worse."""
        if self.run.world.is_first:
            remove(self.run.folder.best)

    def keep_full_rate(self) -> None:
        """Save before the rate falls: from here the run can be given another limit (`more_time`)."""
        self.run.position.full_rate = self.run.position.step
        self.checkpoint()

    def _commit(self, write: Callable[[], Path]) -> bool:
        """Let rank 0 write; False when it could not."""

        def attempt() -> list[str | None]:
            try:
                return [str(write()), None]
            except (NotSaved, OSError) as error:
                return [None, str(error)]

        run, started = self.run, time.monotonic()
        path, failure = run.world.on_rank_zero(attempt)
        facts = {"elapsed": run.clock.elapsed(), "seconds": time.monotonic() - started}
        if failure is None:
            run.report("save", run.position.step, path=path, **facts)
            return True
        self.unsaved = failure
        text = f"WARNING: {failure}. Training goes on; the next save tries again"
        run.report("save_failed", run.position.step, text=text, **facts)
        return False
