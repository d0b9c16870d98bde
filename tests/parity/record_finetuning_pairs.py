#!/usr/bin/env python3
"""Records runs of finetuning-scheduler in which one thing changes in phase 1 and another in phase 2.

    python tests/parity/record_finetuning_pairs.py tests/parity/finetuning_pairs.json

Needs torch, lightning and finetuning-scheduler (recorded with 2.15.0, 2.6.6 and 2.14.1). Every run trains four linear
layers, one a phase, two epochs each, three batches an epoch. What changes: the optimizer, the learning-rate scheduler
(from the initial learning rates or from the present ones), both, a plateau, a lambda, a scheduler that steps within the
epoch. Noted at the start of each epoch: learning rates by group; at the start of each phase also what a new scheduler
would start from, what the present one does, the groups' options and the names of their parameters.
"""
import json
import logging
import sys
import tempfile
import warnings

import lightning.pytorch as pl
import torch
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

sys.path.insert(0, __file__.rpartition("/")[0] or ".")
warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
LOSSES = [5, 4, 4.5, 3, 3.5, 3.25, 2, 2.5]


def inverse(epoch):
    return 1 / (1 + epoch)


class InverseLR(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer, last_epoch=-1):
        super().__init__(optimizer, inverse, last_epoch)


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
        self.log("val_loss", torch.tensor(float(LOSSES[min(self.current_epoch, len(LOSSES) - 1)])))

    def configure_optimizers(self):
        # With no_decay the optimizer gets everything, so that phase 0 is enforced, which splits its group.
        params = [p for p in self.parameters() if p.requires_grad or self.run.get("no_decay")]
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1)
        name, args, stepping = self.run["scheduler"]
        scheduler = InverseLR(optimizer) if name == "InverseLR" else getattr(
            torch.optim.lr_scheduler, name)(optimizer, **args)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **stepping}}


class Look(pl.Callback):
    def __init__(self, schedule):
        self.schedule = schedule
        self.lrs, self.phases = [], []

    def on_train_epoch_start(self, trainer, module):
        optimizer = trainer.optimizers[0]
        groups = optimizer.param_groups
        self.lrs.append([rounded(group["lr"]) for group in groups])
        if self.schedule.curr_depth == len(self.phases):
            scheduler = trainer.lr_scheduler_configs[0].scheduler
            names = {id(p): n for n, p in module.named_parameters()}
            self.phases.append({
                "optimizer": type(optimizer).__name__,
                "initial": [rounded(group.get("initial_lr")) for group in groups],
                "base": [rounded(lr) for lr in getattr(scheduler, "base_lrs", [])],
                "weight_decay": [rounded(group["weight_decay"]) for group in groups],
                "params": [" ".join(names[id(p)].removeprefix("model.") for p in group["params"]) for group in groups],
            })


def rounded(number):
    return None if number is None else float("%.12g" % number)


def record(run):
    torch.manual_seed(1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 3)), batch_size=4)
    with tempfile.TemporaryDirectory() as folder:
        phases = {int(k): json.loads(json.dumps(v)) for k, v in run["schedule"].items()}
        for phase in phases.values():
            init = phase.get("new_lr_scheduler", {}).get("lr_scheduler_init", {})
            if init.get("class_path") == "InverseLR":
                init["class_path"] = "record_finetuning_pairs.InverseLR"
        schedule = FinetuningScheduler(logging_level=logging.ERROR, log_dir=folder, ft_schedule=phases,
                                       epoch_transitions_only=True, **run["config"])
        look = Look(schedule)
        trainer = pl.Trainer(
            callbacks=[schedule, FTSCheckpoint(dirpath=folder, monitor="val_loss", save_top_k=1), look], max_epochs=8,
            accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder)
        trainer.fit(Net(run), data, data)
        return {"lrs": look.lrs, "phases": look.phases}


def optimizer(name, **args):
    return {"new_optimizer": {"optimizer_init": {"class_path": f"torch.optim.{name}", "init_args": args}}}


def scheduler(name, args=None, stepping=None, **more):
    path = name if name == "InverseLR" else f"torch.optim.lr_scheduler.{name}"
    entry = {"lr_scheduler_init": {"class_path": path, "init_args": args or {}}, **more}
    if stepping:
        entry["pl_lrs_cfg"] = stepping
    return {"new_lr_scheduler": entry}


def feature(name, phase):
    """What `name` changes in that phase; another optimizer in each, so that two in a row differ."""
    new = (optimizer("SGD", lr=0.003, momentum=0.8, weight_decay=0.02) if phase == 1 else
           optimizer("Adam", lr=0.004, weight_decay=0.03))
    return {
        "optimizer": new,
        "scheduler": scheduler("StepLR", {"step_size": 1, "gamma": 0.5}),
        "current": scheduler("StepLR", {"step_size": 1, "gamma": 0.6}, use_current_optimizer_pg_lrs=True),
        "both": {**new, **scheduler("ExponentialLR", {"gamma": 0.9})},
        "both, current": {**new, **scheduler("ExponentialLR", {"gamma": 0.9}, use_current_optimizer_pg_lrs=True)},
        "init_pg_lrs": scheduler("StepLR", {"step_size": 1, "gamma": 0.5}, init_pg_lrs=[0.006]),
        "plateau": scheduler("ReduceLROnPlateau", {"factor": 0.5, "patience": 0}, {"monitor": "val_loss"}),
        "lambda": scheduler("InverseLR"),
        "steps": scheduler("StepLR", {"step_size": 1, "gamma": 0.8}, {"interval": "step", "frequency": 2}),
    }[name]


FEATURES = ["optimizer", "scheduler", "current", "both", "both, current", "init_pg_lrs", "plateau", "lambda", "steps"]
FIRST = {  # the scheduler of phase 0
    "step": ["StepLR", {"step_size": 1, "gamma": 0.7}, {}],
    "plateau": ["ReduceLROnPlateau", {"factor": 0.5, "patience": 0}, {"monitor": "val_loss"}],
    "lambda": ["InverseLR", {}, {}],
    "steps": ["StepLR", {"step_size": 1, "gamma": 0.8}, {"interval": "step", "frequency": 2}],
}


PHASES = {str(i): {"params": [f"model.{3 - i}.bias", f"model.{3 - i}.weight"], "max_transition_epoch": 2 * (i + 1),
                   **({"lr": lr} if lr else {})} for i, lr in enumerate([None, 0.005, 0.002, 0.001])}


def settings_of(run):
    phases = json.loads(json.dumps(PHASES))
    phases["1"].update(feature(run["one"], 1))
    phases["2"].update(feature(run["two"], 2))
    config = {"restore_best": bool(run.get("restored"))}
    if "lambda" in (run["first"], run["one"], run["two"]):
        config["apply_lambdas_new_pgs"] = True
    return {"scheduler": FIRST[run["first"]], "schedule": phases, "config": config, "no_decay": run.get("no_decay")}


def runs():
    for one in FEATURES:
        for two in FEATURES:
            yield {"first": "step", "one": one, "two": two}
    for first in list(FIRST)[1:]:
        for one in FEATURES:
            yield {"first": first, "one": one, "two": "scheduler"}
    for one in FEATURES:
        yield {"first": "step", "one": one, "two": "optimizer", "no_decay": ["bias"]}
        yield {"first": "step", "one": "optimizer", "two": one, "no_decay": ["bias"]}
    for one in ["scheduler", "current", "plateau", "steps"]:
        yield {"first": "step", "one": one, "two": "scheduler", "restored": True}


if __name__ == "__main__":
    lines = []
    for run in runs():
        print(run, file=sys.stderr)
        lines.append(json.dumps({**run, **record(settings_of(run))}))
    tables = {"losses": LOSSES, "phases": PHASES, "first": FIRST,
              "features": {name: {str(phase): feature(name, phase) for phase in (1, 2)} for name in FEATURES}}
    with open(sys.argv[1], "w") as file:
        file.write("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in tables.items()))
        file.write(",\n\"runs\": [\n" + ",\n".join(lines) + "\n]}\n")
