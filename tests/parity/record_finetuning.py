#!/usr/bin/env python3
"""Records what finetuning-scheduler does with scripted losses, for finetuning_test.cpp.

    python tests/parity/record_finetuning.py tests/parity/finetuning.json

Needs torch, lightning and finetuning-scheduler (recorded with 2.15.0, 2.6.6 and 2.14.1). Each run trains four linear
layers for one step an epoch; the validation loss comes from a list. Noted at the start of each epoch: phase, learning
rates by group, thawed parameters, parameters with optimizer state, groups.
"""
import json
import logging
import sys
import tempfile
import warnings

import lightning.pytorch as pl
import torch
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint, FTSEarlyStopping

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Net(pl.LightningModule):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.model = torch.nn.Sequential(*[torch.nn.Linear(3, 3) for _ in range(4)])
        if run.get("no_decay"):
            self.no_decay = run["no_decay"]

    def training_step(self, batch, index):
        return self.model(batch[0]).square().mean()

    def validation_step(self, batch, index):
        losses = self.run["losses"]
        self.log("val_loss", torch.tensor(float(losses[min(self.current_epoch, len(losses) - 1)])))

    def configure_optimizers(self):
        params = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=self.run.get("lr", 1e-3), momentum=0.9, weight_decay=0.01)
        name, args = self.run.get("scheduler", ["StepLR", {"step_size": 1, "gamma": 0.7}])
        if name is None:
            return optimizer
        if name == "inverse":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
        else:
            scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **args)
        entry = {"scheduler": scheduler}
        if name == "ReduceLROnPlateau":
            entry["monitor"] = "val_loss"
        return {"optimizer": optimizer, "lr_scheduler": entry}


class Look(pl.Callback):
    def __init__(self, schedule):
        self.schedule = schedule
        self.seen = {"depth": [], "lrs": [], "thawed": [], "states": [], "groups": [], "best_depth": []}

    def on_train_epoch_start(self, trainer, module):
        optimizer = trainer.optimizers[0]
        self.seen["depth"].append(self.schedule.curr_depth)
        self.seen["lrs"].append([float(group["lr"]) for group in optimizer.param_groups])
        self.seen["thawed"].append(sum(p.requires_grad for p in module.parameters()))
        self.seen["states"].append(len(optimizer.state))
        self.seen["groups"].append([len(group["params"]) for group in optimizer.param_groups])
        self.seen["best_depth"].append(self.schedule._fts_state._best_ckpt_depth)


def record(run):
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 3)), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        config = dict(run.get("config", {}))
        if run.get("schedule"):
            config["ft_schedule"] = {int(k): json.loads(json.dumps(v)) for k, v in run["schedule"].items()}
        schedule = FinetuningScheduler(logging_level=logging.ERROR, log_dir=folder, **config)
        callbacks = [schedule, FTSCheckpoint(dirpath=folder, monitor="val_loss", save_top_k=run.get("save_top_k", 1))]
        if not config.get("epoch_transitions_only"):
            callbacks.append(FTSEarlyStopping(monitor="val_loss", patience=run["patience"]))
        look = Look(schedule)
        trainer = pl.Trainer(
            callbacks=callbacks + [look], max_epochs=run.get("max_epochs", 30), accelerator="cpu", devices=1,
            logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            log_every_n_steps=1, default_root_dir=folder)
        trainer.fit(Net(run), data, data)
        return look.seen


BY_LAYER = {str(i): {"params": [f"model.{3 - i}.bias", f"model.{3 - i}.weight"]} for i in range(4)}


def by_layer(**extra):
    phases = json.loads(json.dumps(BY_LAYER))
    for phase, keys in extra.items():
        phases[phase[1:]].update(keys)
    return phases


def step_lr(gamma, **more):
    return {"new_lr_scheduler": {"lr_scheduler_init": {
        "class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": gamma}}, **more}}


SLOW = {"losses": [2, 1], "patience": 2}
ADAM = {"new_optimizer": {"optimizer_init": {"class_path": "torch.optim.Adam", "init_args": {"lr": 2.1e-4}}}}
RUNS = {
    "implicit": {"losses": [5, 4, 3], "patience": 1},
    "implicit, not restored": {"losses": [5, 4, 3], "patience": 1, "config": {"restore_best": False}},
    "max_depth 2": {"losses": [5, 4, 3], "patience": 1, "config": {"max_depth": 2}},
    "constant loss, 3 kept": {"losses": [1], "patience": 1, "max_epochs": 6, "save_top_k": 3},
    "falls and rises": {"losses": [5, 6, 7, 4, 3, 9, 9, 2, 9], "patience": 2},
    "epochs alone": {"losses": [9, 8, 7, 6, 5, 4], "patience": 1, "max_epochs": 6,
                     "config": {"epoch_transitions_only": True},
                     "schedule": by_layer(p0={"max_transition_epoch": 3}, p1={"max_transition_epoch": 2},
                                          p2={"max_transition_epoch": 2}, p3={"max_transition_epoch": 5})},
    "a limit in phase 0": {"losses": [9, 8, 7, 6, 5, 4, 3], "patience": 5, "max_epochs": 7,
                           "schedule": by_layer(p0={"max_transition_epoch": 2})},
    "a limit of 0": {"losses": [9, 8, 7], "patience": 5, "max_epochs": 3, "config": {"restore_best": False},
                     "schedule": by_layer(p0={"max_transition_epoch": 0})},
    "phase lr": {"losses": [5, 4, 3], "patience": 1, "schedule": by_layer(p1={"lr": 1e-6})},
    "no scheduler": {"losses": [5, 4, 3], "patience": 1, "lr": 0.1, "scheduler": [None, {}]},
    "no_decay": {"losses": [5, 4, 3], "patience": 1, "no_decay": ["bias"]},
    "by layer": {**SLOW, "schedule": by_layer()},
    "new scheduler": {**SLOW, "schedule": by_layer(p1=step_lr(0.5))},
    "new scheduler, current lrs": {
        **SLOW, "schedule": by_layer(p1=step_lr(0.5), p2=step_lr(0.7, use_current_optimizer_pg_lrs=True))},
    "init_pg_lrs": {**SLOW, "schedule": by_layer(p2={"lr": 3e-6, "new_lr_scheduler": {
        "lr_scheduler_init": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
                              "init_args": {"T_0": 10}}, "init_pg_lrs": [1e-6, 2e-6]}})},
    "new optimizer, not restored": {**SLOW, "config": {"restore_best": False}, "schedule": by_layer(p1=ADAM)},
    "new optimizer and scheduler, not restored": {
        **SLOW, "config": {"restore_best": False}, "schedule": by_layer(p1={**ADAM, **step_lr(0.5)})},
    "lambda": {**SLOW, "scheduler": ["inverse", {}]},
    "lambda, applied": {**SLOW, "scheduler": ["inverse", {}], "config": {"apply_lambdas_new_pgs": True}},
    "plateau": {**SLOW, "scheduler": ["ReduceLROnPlateau", {"factor": 0.5, "patience": 0, "min_lr": 1e-7}]},
    "warmup": {**SLOW, "scheduler": ["LinearLR", {"start_factor": 0.25, "total_iters": 6}]},
    "cosine": {**SLOW, "scheduler": ["CosineAnnealingLR", {"T_max": 12}]},
    "exponential": {**SLOW, "scheduler": ["ExponentialLR", {"gamma": 0.9}]},
    "multistep": {**SLOW, "scheduler": ["MultiStepLR", {"milestones": [2, 5], "gamma": 0.5}]},
    "new scheduler at every phase": {
        "losses": [5, 4, 3], "patience": 1,
        "config": {"reinit_lr_cfg": {"lr_scheduler_init": {"class_path": "torch.optim.lr_scheduler.StepLR",
                                                           "init_args": {"step_size": 1, "gamma": 0.7}}}}},
    "new optimizer at every phase": {
        "losses": [5, 4, 3], "patience": 1,
        "config": {"reinit_optim_cfg": {"optimizer_init": {"class_path": "torch.optim.Adam",
                                                           "init_args": {"lr": 1e-3}}}}},
}

if __name__ == "__main__":
    out = {}
    for name, run in RUNS.items():
        out[name] = {"run": run, "seen": record(json.loads(json.dumps(run)))}
        print(name, out[name]["seen"]["depth"], file=sys.stderr)
    lines = [json.dumps(name) + ": " + json.dumps(entry) for name, entry in out.items()]
    with open(sys.argv[1], "w") as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")
