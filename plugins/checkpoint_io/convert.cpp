// fabric-convert: checkpoints between safetensors and PyTorch's torch.save, under other names if wanted.
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <fabric/base/error.h>
#include <fabric/base/nearest_name.h>
#include <fabric/plugins/checkpoint_io/checkpoint_io.h>
#include <fabric/plugins/checkpoint_io/checkpoint_part.h>
#include <fabric/plugins/checkpoint_io/read_options.h>
#include <fabric/plugins/checkpoint_io/weight_shards.h>
#include <fabric/state/rename.h>

#include "plugins/checkpoint_io/tools/tools.h"

namespace {

using fabric::Value;
using fabric::checkpoint::printable;

constexpr std::string_view kHelp = R"(fabric-convert: checkpoints between safetensors and PyTorch's torch.save

usage: fabric-convert IN OUT [--from FORMAT] [--to FORMAT] [--key KEY] [--rename 'PATTERN=REPLACEMENT']...
                             [--max-shard-size SIZE] [--no-verify]

  IN             a file of either format; a sharded checkpoint; a folder that Python's torch.distributed.checkpoint
                 wrote; an index of weights in several files (model.safetensors.index.json), or its folder. What it is,
                 is seen from its content
  OUT            written as a whole or not at all; an existing file is replaced
  --from FORMAT  fail unless IN is of this format; also: sharded, dcp, huggingface
  --to FORMAT    needed where OUT does not end in .safetensors, .pt, .pth, .ckpt or .bin
  --key KEY      only this part of the checkpoint, for instance: --key model
  --rename RULE  other names for tensors: PATTERN=REPLACEMENT, divided by the last '='. A name is the dotted path to a
                 tensor, below KEY. What the regular expression finds in it is replaced, $1 by the first brackets.
                 Repeated: all in turn, each on the name that those before it made
  --max-shard-size SIZE  OUT is a new folder of safetensors files with at most so many bytes of tensors each (5GB,
                 500MiB) and an index, as Hugging Face's libraries read them
  --no-verify    do not compare IN with its checksums: for what can be had of a damaged one
  --help         this text

FORMAT is safetensors or torch. A torch file may hold tensors, numbers, strings, lists and dicts; no code in it is ever
run. One that holds other Python objects is refused, unless they lie outside of KEY: then they are listed. Python reads
the results with safetensors.torch.load_file and with torch.load(..., weights_only=True).
)";

struct Arguments {
  std::string in, out, key;
  std::optional<std::string> from, to;
  fabric::RenameRules rename;
  std::optional<std::uint64_t> most_bytes;  // of a file, where OUT is a folder of several
  bool verify = true, help = false;
};

/// The command line cannot be understood.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string checked_format(const std::string& flag, const std::string& name) {
  std::vector<std::string> formats{"safetensors", "torch"};
  if (flag == "--from") formats.insert(formats.end(), {"sharded", "dcp", "huggingface"});
  for (const auto& format : formats)
    if (name == format) return name;
  throw UsageError(flag + " does not know '" + name + "'" + fabric::did_you_mean(name, formats));
}

fabric::RenameRule rename_rule(const std::string& text) {
  // Patterns may hold a '=' of their own: (?=...).
  const auto divide = text.rfind('=');
  if (divide == text.npos || divide == 0) throw UsageError("--rename needs PATTERN=REPLACEMENT, given '" + text + "'");
  return {text.substr(0, divide), text.substr(divide + 1)};
}

std::uint64_t size_of(const std::string& text) {
  const std::pair<const char*, std::uint64_t> units[] = {
      {"", 1},           {"B", 1},          {"KB", 1000},     {"MB", 1000'000}, {"GB", 1000'000'000},
      {"KiB", 1u << 10}, {"MiB", 1u << 20}, {"GiB", 1u << 30}};
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  for (const auto& [unit, bytes] : units)
    if (error == std::errc() && number > 0 && number <= UINT64_MAX / bytes && std::string_view(end) == unit)
      return number * bytes;
  throw UsageError("--max-shard-size needs a number of bytes such as 5GB or 500MiB, given '" + text + "'");
}

Arguments parse(const std::vector<std::string>& words) {
  const std::vector<std::string> flags{"--from",           "--to",        "--key", "--rename",
                                       "--max-shard-size", "--no-verify", "--help"};
  Arguments out;
  std::vector<std::string> files;
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string flag = words[i];
    if (flag == "--help" || flag == "-h") {
      out.help = true;
      return out;
    }
    if (flag == "--no-verify") {
      out.verify = false;
      continue;
    }
    if (!flag.starts_with("--")) {
      files.push_back(flag);
      continue;
    }
    std::optional<std::string> value;
    if (auto equals = flag.find('='); equals != flag.npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    if (std::find(flags.begin(), flags.end(), flag) == flags.end())
      throw UsageError("unknown flag '" + flag + "'" + fabric::did_you_mean(flag, flags));
    if (flag == "--help" || flag == "--no-verify") throw UsageError(flag + " takes no value");
    if (!value && i + 1 < words.size()) value = words[++i];
    if (!value) throw UsageError(flag + " needs a value");
    if (flag == "--from")
      out.from = checked_format(flag, *value);
    else if (flag == "--to")
      out.to = checked_format(flag, *value);
    else if (flag == "--rename")
      out.rename.push_back(rename_rule(*value));
    else if (flag == "--max-shard-size")
      out.most_bytes = size_of(*value);
    else
      out.key = *value;
  }
  if (files.size() != 2)
    throw UsageError("two files are needed, IN and OUT; " + std::to_string(files.size()) + " given");
  out.in = files[0];
  out.out = files[1];
  if (out.most_bytes && out.to && *out.to != "safetensors")
    throw UsageError("--max-shard-size writes safetensors files, not " + *out.to);
  return out;
}

std::string format_by_name(const std::string& path) {
  const auto ending = std::filesystem::path(path).extension().string();
  if (ending == ".safetensors") return "safetensors";
  for (const char* torch : {".pt", ".pth", ".ckpt", ".bin"})
    if (ending == torch) return "torch";
  throw UsageError("'" + path + "' does not say which format is wanted; give --to safetensors or --to torch");
}

std::string format_by_content(const std::string& path) {
  const std::filesystem::path folder = path;
  if (std::filesystem::exists(folder / ".metadata")) return "dcp";
  if (path.ends_with(".index.json")) return "huggingface";
  if (std::filesystem::is_directory(folder))
    return std::filesystem::exists(folder / "index.json") ? "sharded" : "huggingface";
  char start[9] = {};
  std::ifstream(path, std::ios::binary).read(start, sizeof start);
  return start[8] == '{' ? "safetensors" : "torch";  // after the length of the header, which opens with it
}

void require_whole(const fabric::CheckpointPart& part, const Arguments& arguments) {
  if (part.left_out.empty()) return;
  std::string list;
  for (const auto& item : part.left_out) list += (list.empty() ? "" : ", ") + item;
  throw fabric::CheckpointError(
      (arguments.key.empty() ? "'" + arguments.in + "'" : "'" + arguments.key + "' of '" + arguments.in + "'") +
      " holds Python objects, which only Python can rebuild, by running code: " + list +
      ". Give the part that holds none of them by --key");
}

void rename(Value& value, const Arguments& arguments) {
  if (arguments.rename.empty()) return;
  fabric::Renamer rename(arguments.rename);
  value = fabric::rename_tensors(std::move(value), rename).value;
  for (const auto& pattern : rename.unused())
    std::cerr << "fabric-convert: no tensor's name fits the pattern '" << pattern << "'\n";
}

/// Says what was written.
std::string write(const Value& value, const std::string& to, const Arguments& arguments) {
  if (!arguments.most_bytes) {
    fabric::make_checkpoint_io(to)->save(value, arguments.out);
    return to;
  }
  const auto files = fabric::save_weight_shards(value, arguments.out, *arguments.most_bytes);
  return to + ", " + std::to_string(files) + (files == 1 ? " file" : " files");
}

void convert(const Arguments& arguments) {
  const std::string to = arguments.to           ? *arguments.to
                         : arguments.most_bytes ? "safetensors"
                                                : format_by_name(arguments.out);
  fabric::CheckpointPart part = fabric::load_checkpoint_part(arguments.in, arguments.key, {.verify = arguments.verify});
  require_whole(part, arguments);
  for (const auto& object : part.passed_over)
    std::cerr << "fabric-convert: passed over the Python object " << printable(object) << "\n";
  Value& value = part.value;
  const std::string from = format_by_content(arguments.in);
  if (arguments.from && *arguments.from != from)
    throw fabric::CheckpointError("'" + arguments.in + "' is a " + from + " file, not " + *arguments.from);
  rename(value, arguments);
  const std::string written = write(value, to, arguments);
  std::int64_t tensors = 0, bytes = 0;
  fabric::for_each_leaf_tensor(value, [&](at::Tensor& tensor, const std::string&) {
    ++tensors;
    if (tensor.defined() && tensor.layout() == c10::kStrided) bytes += static_cast<std::int64_t>(tensor.nbytes());
  });
  std::ostream& told = fabric::checkpoint::said_on(arguments.out);
  told << printable(arguments.in + " (" + from + ") -> " + arguments.out + " (" + written + "): ") << tensors
       << " tensors, " << bytes << " bytes\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Arguments arguments = parse({argv + 1, argv + argc});
    if (arguments.help) {
      std::cout << kHelp;
      return 0;
    }
    convert(arguments);
    if (!std::cout.flush()) {
      std::cerr << "fabric-convert: stdout cannot be written\n";
      return 1;
    }
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "fabric-convert: " << printable(error.what()) << "\nTry: fabric-convert --help\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "fabric-convert: " << printable(error.what()) << "\n";
    return 1;
  }
}
