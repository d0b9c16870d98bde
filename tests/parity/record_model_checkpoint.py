"""Records what Lightning's ModelCheckpoint keeps in scripted runs: after each epoch the files in the folder, and its
paths and scores. Writes model_checkpoint.json beside this script.

    python record_model_checkpoint.py        # needs torch and lightning 2.6
"""

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

BATCHES = 2  # per epoch


class Scripted(LightningModule):
    def __init__(self, losses, at_step=False):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.losses = losses
        self.at_step = at_step

    def training_step(self, batch, index):
        if self.at_step:
            self.log("loss", torch.tensor(self.losses[self.trainer.global_step]))
        return self.layer(batch).sum()

    def validation_step(self, batch, index):
        if not self.at_step:
            self.log("val_loss", torch.tensor(self.losses[self.current_epoch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(BATCHES, 1))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(1, 1))


class Watch(Callback):
    """After each epoch, once everything of it is done."""

    def __init__(self, checkpoint, folder):
        self.checkpoint, self.folder, self.epochs = checkpoint, folder, []

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:
            self.note()

    def on_fit_end(self, trainer, module):
        self.note()

    def note(self):
        c = self.checkpoint
        name = lambda path: os.path.basename(path)
        number = lambda x: None if x is None else float(x)
        self.epochs.append(
            {
                "files": sorted(p.name for p in Path(self.folder).iterdir()) if os.path.isdir(self.folder) else [],
                "best_model_path": name(c.best_model_path),
                "best_model_score": number(c.best_model_score),
                "kth_best_model_path": name(c.kth_best_model_path),
                "kth_value": float(c.kth_value),
                "best_k_models": {name(k): float(v) for k, v in c.best_k_models.items()},
                "last_model_path": name(c.last_model_path),
                "current_score": number(c.current_score),
            }
        )


NAN = float("nan")
SCENARIOS = [
    dict(name="falling, the best one", losses=[5, 4, 3], config=dict(monitor="val_loss")),
    dict(name="mode max, two kept", losses=[3, 2, 2.5, 1, 4], config=dict(monitor="val_loss", mode="max", save_top_k=2)),
    dict(name="mode min, two kept", losses=[3, 2, 2.5, 1, 4, 0.5], config=dict(monitor="val_loss", save_top_k=2)),
    dict(name="static name, two kept", losses=[3, 2, 1, 0.5, 0.25], config=dict(monitor="val_loss", save_top_k=2, filename="best")),
    dict(name="static name, one kept", losses=[3, 2, 1], config=dict(monitor="val_loss", filename="best")),
    dict(name="static name, no versions", losses=[3, 2, 1], config=dict(monitor="val_loss", save_top_k=2, filename="best", enable_version_counter=False)),
    dict(name="all kept", losses=[3, 4, 2], config=dict(monitor="val_loss", save_top_k=-1)),
    dict(name="ties", losses=[2, 2, 2, 1, 1], config=dict(monitor="val_loss", save_top_k=2)),
    dict(name="ties in mode max", losses=[2, 2, 3, 3, 3], config=dict(monitor="val_loss", save_top_k=2, mode="max")),
    dict(name="NaN first", losses=[NAN, 3, NAN, 2], config=dict(monitor="val_loss", save_top_k=2)),
    dict(name="NaN last, mode max", losses=[3, NAN, 1], config=dict(monitor="val_loss", save_top_k=2, mode="max")),
    dict(name="no monitor", losses=[1, 2, 3], config=dict()),
    dict(name="no monitor, all", losses=[1, 2, 3], config=dict(save_top_k=-1)),
    dict(name="every second epoch and last", losses=[5, 4, 3, 2, 1], config=dict(every_n_epochs=2, save_last=True)),
    dict(name="last and a metric that gets worse", losses=[1, 2, 0.5], config=dict(monitor="val_loss", save_last=True)),
    dict(name="last as a link", losses=[3, 2, 4, 1], config=dict(monitor="val_loss", save_top_k=2, save_last="link")),
    dict(name="every third step", losses=[0] * 4, config=dict(every_n_train_steps=3, save_top_k=-1)),
    dict(name="every third step and last", losses=[0] * 4, config=dict(every_n_train_steps=3, save_last=True)),
    dict(name="every third step, metric of the validation", losses=[4, 3, 2, 1], config=dict(every_n_train_steps=3, monitor="val_loss", save_top_k=-1)),
    dict(name="names with metrics", losses=[0.123456, 0.25, 1e-5], config=dict(monitor="val_loss", save_top_k=-1, filename="m-{epoch:02d}-{val_loss:.2f}-{acc}")),
    dict(name="names without inserted names", losses=[0.5, 0.25], config=dict(monitor="val_loss", save_top_k=-1, filename="e{epoch:03d}_{val_loss:.3e}", auto_insert_metric_name=False)),
    dict(name="a foreign last", losses=[3, 2, 1], config=dict(monitor="val_loss", save_last=True), there=["last.ckpt"]),
]


def record(scenario, folder):
    os.makedirs(folder, exist_ok=True)
    for name in scenario.get("there", []):
        Path(folder, name).write_text("")
    checkpoint = ModelCheckpoint(dirpath=folder, **scenario["config"])
    watch = Watch(checkpoint, folder)
    trainer = Trainer(
        max_epochs=len(scenario["losses"]), accelerator="cpu", logger=False, callbacks=[checkpoint, watch],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )
    trainer.fit(Scripted([float(x) for x in scenario["losses"]]))
    return {**scenario, "epochs": watch.epochs}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    out = []
    for scenario in SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            out.append(record(scenario, os.path.realpath(folder) + "/kept"))
    target = Path(__file__).with_name("model_checkpoint.json")
    target.write_text(
        json.dumps({"lightning": lightning.__version__, "batches": BATCHES, "scenarios": out}, indent=1) + "\n"
    )
