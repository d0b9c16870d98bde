#pragma once
// Everything of fabric/helpers: standalone objects for a training loop of one's own, with Fabric and without it.

#include <fabric/helpers/metrics.h>
#include <fabric/helpers/peers.h>
