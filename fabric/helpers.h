#pragma once
// Everything of fabric/helpers: standalone objects for a training loop of one's own, with Fabric and without it.

#include <fabric/helpers/early_stopping.h>
#include <fabric/helpers/finetuning_scheduler.h>
#include <fabric/helpers/lr_scheduler_registry.h>
#include <fabric/helpers/lr_schedulers.h>
#include <fabric/helpers/metrics.h>
#include <fabric/helpers/model_checkpoint.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/helpers/peers.h>
#include <fabric/helpers/resume.h>
#include <fabric/helpers/strategy_adapter.h>
