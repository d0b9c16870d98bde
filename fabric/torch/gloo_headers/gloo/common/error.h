#pragma once
// LibTorch's ProcessGroupGloo.hpp includes this header of Gloo and needs nothing of it.
