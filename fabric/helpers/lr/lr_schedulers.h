#pragma once
// All learning-rate schedulers.

#include <fabric/helpers/lr/composite_lr.h>
#include <fabric/helpers/lr/cosine_lr.h>
#include <fabric/helpers/lr/cyclic_lr.h>
#include <fabric/helpers/lr/decay_lr.h>
#include <fabric/helpers/lr/lambda_lr.h>
#include <fabric/helpers/lr/reduce_lr_on_plateau.h>
