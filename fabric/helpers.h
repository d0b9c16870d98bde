#pragma once
// Everything of fabric/helpers: standalone objects for a training loop of one's own, with Fabric and without it.

#include <fabric/helpers/checkpointing/model_checkpoint.h>
#include <fabric/helpers/checkpointing/resume.h>
#include <fabric/helpers/early_stopping.h>
#include <fabric/helpers/finetuning/finetuning_scheduler.h>
#include <fabric/helpers/finetuning/strategy_adapter.h>
#include <fabric/helpers/list_parts.h>
#include <fabric/helpers/lr/lr_scheduler_registry.h>
#include <fabric/helpers/lr/lr_schedulers.h>
#include <fabric/helpers/metrics.h>
#include <fabric/helpers/optimizer_registry.h>
#include <fabric/helpers/peers.h>
