#pragma once

#include <array>
#include <optional>
#include <string_view>

#include <c10/core/ScalarType.h>

namespace fabric::checkpoint {

/// What PyTorch calls a type: torch.float32, and torch.FloatStorage for memory of it (newer types have no such class).
struct TorchType {
  c10::ScalarType type;
  std::string_view dtype;
  std::string_view storage;
};
inline constexpr std::array kTorchTypes{
    TorchType{c10::ScalarType::Double, "float64", "DoubleStorage"},
    TorchType{c10::ScalarType::Float, "float32", "FloatStorage"},
    TorchType{c10::ScalarType::Half, "float16", "HalfStorage"},
    TorchType{c10::ScalarType::BFloat16, "bfloat16", "BFloat16Storage"},
    TorchType{c10::ScalarType::Long, "int64", "LongStorage"},
    TorchType{c10::ScalarType::Int, "int32", "IntStorage"},
    TorchType{c10::ScalarType::Short, "int16", "ShortStorage"},
    TorchType{c10::ScalarType::Char, "int8", "CharStorage"},
    TorchType{c10::ScalarType::Byte, "uint8", "ByteStorage"},
    TorchType{c10::ScalarType::Bool, "bool", "BoolStorage"},
    TorchType{c10::ScalarType::ComplexDouble, "complex128", "ComplexDoubleStorage"},
    TorchType{c10::ScalarType::ComplexFloat, "complex64", "ComplexFloatStorage"},
    TorchType{c10::ScalarType::ComplexHalf, "complex32", ""},
    TorchType{c10::ScalarType::UInt16, "uint16", ""},
    TorchType{c10::ScalarType::UInt32, "uint32", ""},
    TorchType{c10::ScalarType::UInt64, "uint64", ""},
    TorchType{c10::ScalarType::Float8_e4m3fn, "float8_e4m3fn", ""},
    TorchType{c10::ScalarType::Float8_e5m2, "float8_e5m2", ""},
    TorchType{c10::ScalarType::Float8_e8m0fnu, "float8_e8m0fnu", ""},
    TorchType{c10::ScalarType::Float8_e4m3fnuz, "float8_e4m3fnuz", ""},
    TorchType{c10::ScalarType::Float8_e5m2fnuz, "float8_e5m2fnuz", ""},
    TorchType{c10::ScalarType::Float4_e2m1fn_x2, "float4_e2m1fn_x2", ""},
};

}  // namespace fabric::checkpoint
