#include <algorithm>
#include <cctype>

#include <fabric/utilities/throughput.h>

namespace fabric {
namespace {

// Teraflops for dense matrices, out of the makers' data sheets and white papers; 0: not offered. Half stands for
// float16 and bfloat16, summed up in float32. float64 is that of the tensor cores where they do it; the smaller chips
// of a generation have a fixed share of their float32 rate, which data sheets leave out.
struct Gpu {
  const char* name;
  double float64, float32, tf32, half, int8;
};

// The first entry whose words all occur in the device's name counts, so special variants come before plain ones.
constexpr Gpu kGpus[] = {
    {"gb200", 40, 80, 1250, 2500, 5000},
    {"b200", 37, 75, 1100, 2250, 4500},
    {"b100", 30, 60, 900, 1800, 3500},
    {"gh200", 67, 67, 494.7, 989.4, 1978.9},
    {"h200 nvl", 60, 60, 417.5, 835.5, 1670.5},
    {"h200", 67, 67, 494.7, 989.4, 1978.9},
    {"h100 nvl", 60, 60, 417.5, 835.5, 1670.5},
    {"h100 pcie", 51.2, 51.2, 378, 756, 1513},
    {"h100", 67, 67, 494.7, 989.4, 1978.9},
    {"h800", 1, 67, 494.7, 989.4, 1978.9},
    {"h20", 1, 44, 74, 148, 296},
    {"l40s", 91.6 / 64, 91.6, 183, 362, 733},
    {"l40", 90.5 / 64, 90.5, 90.5, 181, 362},
    {"l4", 30.3 / 64, 30.3, 60, 121, 242},
    {"rtx 6000 ada", 91.1 / 64, 91.1, 182.1, 364.2, 728.5},
    {"a800", 19.5, 19.5, 156, 312, 624},
    {"a100", 19.5, 19.5, 156, 312, 624},
    {"a6000", 38.7 / 64, 38.7, 77.4, 154.8, 309.7},
    {"a40", 37.4 / 64, 37.4, 74.8, 149.7, 299.3},
    {"a30", 10.3, 10.3, 82, 165, 330},
    {"a10g", 31.2 / 64, 31.2, 35, 70, 140},
    {"a10", 31.2 / 64, 31.2, 62.5, 125, 250},
    {"rtx 5090", 104.8 / 64, 104.8, 104.8, 209.5, 838},
    {"rtx 4090", 82.6 / 64, 82.6, 82.6, 165.2, 660.6},
    {"rtx 4080 super", 52.2 / 64, 52.2, 52.2, 104.4, 417.6},
    {"rtx 4080", 48.7 / 64, 48.7, 48.7, 97.5, 389.9},
    {"rtx 3090 ti", 40.0 / 64, 40, 40, 80, 320},
    {"rtx 3090", 35.6 / 64, 35.6, 35.6, 71, 284},
    {"rtx 3080 ti", 34.1 / 64, 34.1, 34.1, 68.2, 272.8},
    {"rtx 3080", 29.8 / 64, 29.8, 29.8, 59.5, 238},
    {"rtx 3070 ti", 21.7 / 64, 21.7, 21.7, 43.5, 174},
    {"rtx 3070", 20.3 / 64, 20.3, 20.3, 40.6, 162.6},
    {"titan rtx", 16.3 / 32, 16.3, 0, 130.5, 261},
    {"quadro rtx 8000", 16.3 / 32, 16.3, 0, 130.5, 261},
    {"quadro rtx 6000", 16.3 / 32, 16.3, 0, 130.5, 261},
    {"quadro rtx 5000", 11.2 / 32, 11.2, 0, 89.2, 178.4},
    {"rtx 2080 ti", 14.2 / 32, 14.2, 0, 56.9, 227.7},
    {"rtx 2080 super", 11.2 / 32, 11.2, 0, 44.6, 178.4},
    {"rtx 2080", 10.6 / 32, 10.6, 0, 42.4, 169.6},
    {"rtx 2070 super", 9.1 / 32, 9.1, 0, 36.3, 145},
    {"rtx 2070", 7.9 / 32, 7.9, 0, 31.5, 126},
    {"rtx 2060 super", 7.2 / 32, 7.2, 0, 28.7, 114.8},
    {"rtx 2060", 6.5 / 32, 6.5, 0, 25.8, 103.2},
    {"v100s", 8.2, 16.4, 0, 130, 0},
    {"v100 sxm", 7.8, 15.7, 0, 125, 0},
    {"v100 pcie", 7, 14, 0, 112, 0},
    {"v100", 7.8, 15.7, 0, 125, 0},
    {"t4", 8.1 / 32, 8.1, 0, 65, 130},
};

// "NVIDIA A100-SXM4-80GB" -> " nvidia a100 sxm4 80gb ": words are looked for, since "a10" is not "a100".
std::string words(std::string_view name) {
  std::string out = " ";
  for (char c : name)
    out += std::isalnum(static_cast<unsigned char>(c)) ? std::tolower(static_cast<unsigned char>(c)) : ' ';
  return out + " ";
}

bool has_words(const std::string& device, std::string_view wanted) {
  while (!wanted.empty()) {
    auto end = std::min(wanted.find(' '), wanted.size());
    auto word = std::string(wanted.substr(0, end));
    // "sxm" stands for sxm2 to sxm5.
    bool whole = word != "sxm";
    if (device.find(" " + word + (whole ? " " : "")) == std::string::npos) return false;
    wanted.remove_prefix(std::min(end + 1, wanted.size()));
  }
  return true;
}

}  // namespace

std::optional<double> peak_flops(std::string_view device_name, std::string_view dtype) {
  auto device = words(device_name);
  // Chips for laptops bear the names of larger ones.
  if (has_words(device, "laptop") || has_words(device, "max q") || has_words(device, "mobile")) return std::nullopt;
  for (const auto& gpu : kGpus) {
    if (!has_words(device, gpu.name)) continue;
    double tera = 0;
    if (dtype == "float64") tera = gpu.float64;
    if (dtype == "float32") tera = gpu.float32;
    if (dtype == "tf32") tera = gpu.tf32;
    // Volta and Turing have no bfloat16.
    if (dtype == "float16" || (dtype == "bfloat16" && gpu.tf32 > 0)) tera = gpu.half;
    if (dtype == "int8") tera = gpu.int8;
    if (tera == 0) return std::nullopt;
    return tera * 1e12;
  }
  return std::nullopt;
}

}  // namespace fabric
