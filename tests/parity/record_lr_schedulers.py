"""Records the learning rates (and cycled momenta) that torch.optim.lr_scheduler gives, step by step, for the C++
schedulers to match.

Usage: PYTHON record_lr_schedulers.py lr_schedulers     (a Python with torch 2.15.0 and safetensors)

Writes lr_schedulers.json, the cases, with all that the C++ test needs to do the same: optimizer, schedulers by
class_path and init_args, groups that are added on the way; and lr_schedulers.safetensors, the numbers, by number of
the case: lrs and momenta of shape [steps + 1, groups] (NaN where a group is not there yet), metrics and epochs. Functions
are named; both sides know what the names mean.
"""

import json
import math
import sys
import warnings

import torch
from safetensors.torch import save_file

STEPS = 200
warnings.filterwarnings("ignore")

FUNCTIONS = {
    "power": lambda epoch: 0.95**epoch,
    "harmonic": lambda epoch: 1 / (1 + epoch),
    "wave": lambda epoch: 1.0 + 0.1 * math.sin(epoch),
    "height": lambda x: 0.5 * (1 + math.sin(x * math.pi / 2.0)),
}


def make_scheduler(optimizer, spec):
    kind = getattr(torch.optim.lr_scheduler, spec["class_path"])
    args = dict(spec.get("init_args", {}))
    if "lr_lambda" in args:
        names = args.pop("lr_lambda")
        args["lr_lambda"] = [FUNCTIONS[n] for n in names] if isinstance(names, list) else FUNCTIONS[names]
    if "scale_fn" in args:
        args["scale_fn"] = FUNCTIONS[args["scale_fn"]]
    if "schedulers" in args:
        args["schedulers"] = [make_scheduler(optimizer, inner) for inner in args["schedulers"]]
        if spec["class_path"] == "ChainedScheduler":
            return kind(args["schedulers"], optimizer)
    return kind(optimizer, **args)


def make_group(lr, initial_lr=None):
    group = {"params": [torch.zeros(2, requires_grad=True)], "lr": lr}
    if initial_lr is not None:
        group["initial_lr"] = initial_lr
    return group


def grow(scheduler, optimizer, lr, lr_now):
    """What adding a group takes in Python: every list that the scheduler keeps is extended by hand."""
    group = make_group(lr_now, lr)
    kind = type(scheduler).__name__
    if kind == "OneCycleLR":
        first = optimizer.param_groups[0]
        group["max_lr"] = lr * (first["max_lr"] / first["initial_lr"])
        group["min_lr"] = lr / (first["initial_lr"] / first["min_lr"])
        group["max_momentum"], group["base_momentum"] = first["max_momentum"], first["base_momentum"]
    if kind == "CyclicLR":
        scheduler.max_lrs.append(lr * (scheduler.max_lrs[0] / scheduler.base_lrs[0]))
        scheduler.base_momentums.append(scheduler.base_momentums[0])
        scheduler.max_momentums.append(scheduler.max_momentums[0])
    optimizer.add_param_group(group)
    if kind == "ReduceLROnPlateau":
        scheduler.min_lrs.append(scheduler.min_lrs[0])
    else:
        scheduler.base_lrs.append(lr)
    if hasattr(scheduler, "lr_lambdas"):
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[-1])


def record(case):
    initial = case.get("initial_lrs", [None] * len(case["lrs"]))
    groups = [make_group(lr, first) for lr, first in zip(case["lrs"], initial)]
    optimizer = getattr(torch.optim, case.get("optimizer", "SGD"))(groups, **case.get("optimizer_args", {"lr": 0.1}))
    schedulers = [make_scheduler(optimizer, spec) for spec in case["schedulers"]]
    lrs, momenta = [], []

    def note():
        lrs.append([group["lr"] for group in optimizer.param_groups])
        if case.get("momentum"):
            momenta.append([g["betas"][0] if "betas" in g else g["momentum"] for g in optimizer.param_groups])

    note()
    additions = {at: (lr, lr_now) for at, lr, lr_now in case.get("grow", [])}
    for step in range(case.get("steps", STEPS)):
        if step in additions:
            for scheduler in schedulers:
                if len(schedulers) > 1:
                    raise NotImplementedError
                grow(scheduler, optimizer, *additions[step])
        optimizer.step()
        for scheduler in schedulers:
            if "metrics" in case:
                scheduler.step(case["metrics"][step])
            elif "epochs" in case:
                scheduler.step(case["epochs"][step])
            else:
                scheduler.step()
        note()
    numbers = {"lrs": lrs, "momenta": momenta, "metrics": case.pop("metrics", []), "epochs": case.pop("epochs", [])}
    return case, {name: padded(rows) for name, rows in numbers.items() if rows}


def padded(rows):
    if not isinstance(rows[0], list):
        return torch.tensor(rows, dtype=torch.float64)
    width = max(len(row) for row in rows)
    return torch.tensor([row + [math.nan] * (width - len(row)) for row in rows], dtype=torch.float64)


def one(class_path, lrs=(0.1, 0.003), **init_args):
    more = {key[1:]: init_args.pop(key) for key in list(init_args) if key.startswith("_")}
    return {"lrs": list(lrs), "schedulers": [{"class_path": class_path, "init_args": init_args}], **more}


def several(*specs, lrs=(0.1, 0.003), **more):
    return {"lrs": list(lrs), "schedulers": [{"class_path": k, "init_args": a} for k, a in specs], **more}


def inner(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


def metrics():
    """A loss that falls, stands still, jumps, is NaN and falls again."""
    values = []
    for step in range(STEPS):
        value = 2.0 / (1 + step) if step < 40 else 0.05 + 0.001 * math.cos(step)
        values.append(value if step % 50 != 13 else 3.0)
    values[60] = math.nan
    values[150:] = [0.04 - 0.0001 * i for i in range(50)]
    return values


def cases():
    sgd = {"optimizer": "SGD", "optimizer_args": {"lr": 0.1, "momentum": 0.9}, "momentum": True}
    rms = {"optimizer": "RMSprop", "optimizer_args": {"lr": 0.1, "momentum": 0.5}, "momentum": True}
    adam = {"optimizer": "Adam", "optimizer_args": {"lr": 0.1}, "momentum": True}
    adamw = {"optimizer": "AdamW", "optimizer_args": {"lr": 0.1, "betas": [0.8, 0.99]}, "momentum": True}
    cycled = [{"_" + key: value for key, value in each.items()} for each in (sgd, rms, adam, adamw)]
    resume = {"_initial_lrs": [0.1, 0.003]}
    yield one("LambdaLR", lr_lambda="power")
    yield one("LambdaLR", lr_lambda=["harmonic", "wave"])
    yield one("LambdaLR", lr_lambda="wave", last_epoch=6, lrs=(0.07, 0.002), **resume)
    yield one("LambdaLR", lr_lambda=["power", "harmonic"], _grow=[[20, 1e-4, 2e-5], [50, 3e-4, 3e-4]])
    yield one("MultiplicativeLR", lr_lambda="wave")
    yield one("MultiplicativeLR", lr_lambda=["wave", "power"], last_epoch=11, **resume)
    yield one("MultiplicativeLR", lr_lambda="wave", _grow=[[7, 1e-5, 1e-5]])
    yield one("StepLR", step_size=1, gamma=0.7)
    yield one("StepLR", step_size=30)
    yield one("StepLR", step_size=7, gamma=0.9, last_epoch=13, lrs=(0.05, 0.001), **resume)
    yield one("StepLR", step_size=3, gamma=0.99, _grow=[[10, 1e-5, 1e-5], [11, 1e-4, 1e-4]])
    yield one("MultiStepLR", milestones=[5, 5, 30, 90, 170])
    yield one("MultiStepLR", milestones=[60, 20], gamma=0.5, last_epoch=19, **resume)
    yield one("MultiStepLR", milestones=[1, 100], gamma=1.5, _grow=[[99, 1e-3, 1e-3]])
    yield one("ConstantLR")
    yield one("ConstantLR", factor=0.1, total_iters=150)
    yield one("ConstantLR", factor=0.25, total_iters=20, last_epoch=10, lrs=(0.025, 0.00075), **resume)
    yield one("LinearLR")
    yield one("LinearLR", start_factor=1.0, end_factor=0.01, total_iters=180)
    yield one("LinearLR", start_factor=0.001, total_iters=50, last_epoch=20, lrs=(0.04, 0.0012), **resume)
    yield one("LinearLR", start_factor=0.2, end_factor=0.9, total_iters=77, _grow=[[30, 1e-4, 5e-5]])
    yield one("ExponentialLR", gamma=0.97)
    yield one("ExponentialLR", gamma=1.01, last_epoch=4, **resume)
    yield one("ExponentialLR", gamma=0.9, _grow=[[4, 1e-5, 1e-5]])
    yield one("PolynomialLR")
    yield one("PolynomialLR", total_iters=190, power=2.5)
    yield one("PolynomialLR", total_iters=100, power=0.9, last_epoch=30, lrs=(0.07, 0.002), **resume)
    yield one("CosineAnnealingLR", T_max=200)
    yield one("CosineAnnealingLR", T_max=13, eta_min=1e-4)
    yield one("CosineAnnealingLR", T_max=1)
    yield one("CosineAnnealingLR", T_max=50, eta_min=1e-5, last_epoch=9, lrs=(0.09, 0.0028), **resume)
    yield one("CosineAnnealingLR", T_max=30, eta_min=1e-6, _grow=[[10, 1e-4, 1e-4], [40, 1e-3, 2e-4]])
    yield one("CosineAnnealingWarmRestarts", T_0=10)
    yield one("CosineAnnealingWarmRestarts", T_0=5, T_mult=2, eta_min=1e-4)
    yield one("CosineAnnealingWarmRestarts", T_0=50, T_mult=3, last_epoch=20, **resume)
    yield one("CosineAnnealingWarmRestarts", T_0=4, T_mult=2, _epochs=[i / 7 for i in range(STEPS)])
    yield one("CosineAnnealingWarmRestarts", T_0=3, _epochs=[i * 0.1 for i in range(150)] + [2.5] * 50)
    yield one("CosineAnnealingWarmRestarts", T_0=8, T_mult=2, _grow=[[11, 1e-4, 1e-4]])
    yield one("ReduceLROnPlateau", _metrics=metrics())
    yield one("ReduceLROnPlateau", patience=2, factor=0.5, cooldown=3, min_lr=1e-5, _metrics=metrics())
    yield one("ReduceLROnPlateau", mode="max", patience=1, threshold=0.01, threshold_mode="abs", factor=0.9,
              min_lr=[1e-3, 1e-4], eps=1e-4, _metrics=metrics())
    yield one("ReduceLROnPlateau", mode="max", patience=4, factor=0.8, threshold=0.2, _metrics=metrics())
    yield one("ReduceLROnPlateau", patience=0, threshold_mode="abs", factor=0.95, min_lr=[1e-4, 1e-5],
              _metrics=metrics(), _grow=[[30, 1e-3, 1e-3]])
    for each in cycled:
        yield one("OneCycleLR", max_lr=0.3, total_steps=STEPS, **each)
        yield one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=20, **each)
    yield one("OneCycleLR", max_lr=[0.3, 0.01], epochs=10, steps_per_epoch=21, pct_start=0.25, div_factor=10.0,
              final_div_factor=100.0, anneal_strategy="linear", base_momentum=[0.7, 0.8], max_momentum=0.99, **cycled[0])
    yield one("OneCycleLR", max_lr=0.05, total_steps=210, three_phase=True, **cycled[2])
    yield one("OneCycleLR", max_lr=0.05, total_steps=STEPS, cycle_momentum=False, pct_start=0.0)
    yield one("OneCycleLR", max_lr=0.05, total_steps=STEPS, _grow=[[40, 1e-4, 1e-4]], **cycled[3])
    yield one("CyclicLR", base_lr=[0.01, 0.001], max_lr=[0.1, 0.02], step_size_up=13, step_size_down=29,
              mode="triangular2", base_momentum=0.5, max_momentum=0.95, **cycled[0])
    yield one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=8, mode="exp_range", gamma=0.99, **cycled[2])
    yield one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=15, scale_fn="height", scale_mode="cycle", **cycled[1])
    yield one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=15, scale_fn="height", scale_mode="iterations",
              cycle_momentum=False)
    yield one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=12, _grow=[[5, 1e-3, 1e-3]], **cycled[0])
    yield one("SequentialLR", milestones=[10], schedulers=[
        inner("LinearLR", start_factor=0.01, total_iters=10), inner("CosineAnnealingLR", T_max=190)])
    yield one("SequentialLR", milestones=[2, 50, 120], schedulers=[
        inner("ConstantLR", factor=0.1, total_iters=2), inner("ExponentialLR", gamma=0.98),
        inner("StepLR", step_size=10, gamma=0.5), inner("PolynomialLR", total_iters=60, power=2.0)])
    yield one("SequentialLR", milestones=[15, 80], schedulers=[
        inner("MultiStepLR", milestones=[3, 9], gamma=0.3), inner("CosineAnnealingWarmRestarts", T_0=9, T_mult=2),
        inner("LambdaLR", lr_lambda="harmonic")])
    yield one("SequentialLR", milestones=[5, 10, 15], schedulers=[
        inner("MultiplicativeLR", lr_lambda="wave"), inner("MultiplicativeLR", lr_lambda="power"),
        inner("LinearLR", start_factor=0.5, total_iters=4), inner("ConstantLR", total_iters=40)])
    yield one("SequentialLR", milestones=[20], schedulers=[
        inner("LinearLR", start_factor=0.1, total_iters=20),
        inner("OneCycleLR", max_lr=0.2, total_steps=200)], **cycled[0])
    yield one("SequentialLR", milestones=[12], schedulers=[
        inner("ChainedScheduler", schedulers=[inner("ConstantLR", total_iters=4), inner("LinearLR", total_iters=9)]),
        inner("CosineAnnealingLR", T_max=60)])
    yield one("ChainedScheduler", schedulers=[
        inner("ConstantLR", factor=0.1, total_iters=20), inner("ExponentialLR", gamma=0.99)])
    yield one("ChainedScheduler", schedulers=[
        inner("CosineAnnealingLR", T_max=40, eta_min=1e-5), inner("StepLR", step_size=50, gamma=0.3),
        inner("LinearLR", start_factor=0.1, total_iters=30)])
    yield several(("StepLR", {"step_size": 20, "gamma": 0.5}), ("LinearLR", {"total_iters": 25}))
    yield several(("CosineAnnealingLR", {"T_max": 35}), ("ExponentialLR", {"gamma": 0.995}))
    yield several(("ConstantLR", {"factor": 0.5, "total_iters": 9}), ("LambdaLR", {"lr_lambda": "power"}))
    yield one("StepLR", step_size=10, gamma=0.5, lrs=(0.1, 0.003, 7e-5, 1.0))


def main(path):
    runs, tensors = [], {}
    for number, case in enumerate(cases()):
        run, numbers = record(case)
        runs.append(run)
        tensors.update({f"{number}.{name}": tensor for name, tensor in numbers.items()})
    with open(path + ".json", "w") as file:
        file.write('{"torch": %s, "runs": [\n' % json.dumps(torch.__version__.split("+")[0]))
        file.write(",\n".join(json.dumps(run) for run in runs))
        file.write("\n]}\n")
    save_file(tensors, path + ".safetensors")
    print(len(runs), "cases")


if __name__ == "__main__":
    main(sys.argv[1])
