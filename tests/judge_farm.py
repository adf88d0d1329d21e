"""A root whose checkpoints are scored by hand-made numbers, so that the judge is tested without torch."""

import hashlib
import json

from core.atomic import read_json
from core.checkpoints import Catalogue
from core.settings import load_settings
from trainer.evaluate.bench import Bench
from trainer.evaluate.judge import Judge

JOBS = [f"20261122T01010{n}000000Z-abcdef" for n in range(3)]


class FakeScorer:
    """Every row costs `loss` nats a token (two tokens), shifted a little by its content; answers are looked up."""

    def __init__(self, loss, answer):
        self._loss, self._answer = loss, answer
        self.rows_scored = 0
        self.asked = 0

    def losses(self, rows):
        self.rows_scored += len(rows)
        return [(2 * self._loss(json.dumps(row)), 2) for row in rows]

    def choice_losses(self, prompts, choices):
        return [[(2 * self._loss(text), 2) for text in texts] for texts in choices]

    def answers(self, prompts, max_new_tokens):
        self.asked += len(prompts)
        return [self._answer(prompt[-1]["content"]) for prompt in prompts]

    def count_tokens(self, text):
        return len(text)


def wobble(text):
    """A fixed number in 0..1 for each text."""
    return hashlib.sha256(text.encode()).digest()[0] / 255


class Farm:
    """A root with checkpoints whose models are FakeScorers."""

    def __init__(self, workspace):
        self.workspace = workspace
        self.settings = load_settings(workspace, env={})
        self.catalogue = Catalogue(workspace, "main")
        self.scorers = {}
        self.loads = []
        self.base = self.commit(0, None, 3.0)

    def commit(self, step, job, loss, answer="wrong", jitter=0.1):
        staged = self.catalogue.stage(step)
        (staged / "model.safetensors").write_bytes(f"{step}".encode())
        head = self.catalogue.head()
        jobs = [{"job_id": job, "file": "a.jsonl", "sha256": "0" * 64, "generator": "manual"}] if job else []
        jobs = [{**one, "rows_train": 1, "rows_trained": 1, "epochs": 1} for one in jobs]
        fields = {"step": step, "parent": head.id if head else None, "jobs": jobs, "train_loss": None, "versions": {}}
        base = head.manifest["base"] if head else {"name": "b", "sha256": None}
        sums = {"tokenizer_sha256": "", "chat_template_sha256": "", "profile": None, "config_sha256": ""}
        made = self.catalogue.commit(staged, {**fields, **sums, "base": base})
        reply = answer if callable(answer) else lambda prompt: answer
        self.scorers[made.id] = FakeScorer(lambda text: loss + jitter * wobble(f"{step}{text}"), reply)
        return made

    def hold_out(self, job, rows, start=0):
        folder = self.workspace.incoming_dir("main")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{job}.jsonl").open("w") as file:
            for n in range(start, start + rows):
                turns = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]
                sha = hashlib.sha256(f"{n}".encode()).hexdigest()
                file.write(json.dumps({"sha256": sha, "row": n, "messages": turns}) + "\n")

    def add_suite(self, name, items=40, **fields):
        folder = self.workspace.own_suites_dir / name
        folder.mkdir(parents=True)
        (folder / "suite.json").write_text(json.dumps({"name": name, "version": 1, "metric": "accuracy", **fields}))
        lines = [json.dumps({"id": f"{name}-{n}", "prompt": f"{name} {n}", "expected": "right"}) for n in range(items)]
        (folder / "items.jsonl").write_text("\n".join(lines))

    def bench(self):
        def load(checkpoint):
            self.loads.append(checkpoint.id)
            return self.scorers[checkpoint.id]

        return Bench(self.workspace, load, {"format": 1})

    def judge(self, candidate, serving=None, **more):
        judge = Judge(self.workspace, self.settings, self.bench())
        return judge.judge(candidate.id, serving.id if serving else None, **more)

    def leaderboard(self):
        return read_json(self.workspace.status_file("leaderboard.json"))
