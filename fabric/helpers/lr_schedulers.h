#pragma once
// All learning-rate schedulers.

#include <fabric/helpers/composite_lr.h>
#include <fabric/helpers/cosine_lr.h>
#include <fabric/helpers/cyclic_lr.h>
#include <fabric/helpers/decay_lr.h>
#include <fabric/helpers/lambda_lr.h>
#include <fabric/helpers/reduce_lr_on_plateau.h>
