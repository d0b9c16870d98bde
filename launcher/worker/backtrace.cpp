#include "launcher/worker/backtrace.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace fabric {
namespace {

/// A file in memory, of which any part may be asked for.
class MappedFile {
 public:
  explicit MappedFile(const char* path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd >= 0 && fstat(fd, &info) == 0 && info.st_size > 0) {
      size_ = static_cast<std::size_t>(info.st_size);
      void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
      bytes_ = mapped == MAP_FAILED ? nullptr : static_cast<const char*>(mapped);
    }
    if (fd >= 0) close(fd);
  }
  ~MappedFile() {
    if (bytes_) munmap(const_cast<char*>(bytes_), size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  /// `count` objects at an offset; null when the file is not that long.
  template <class T>
  const T* at(std::uint64_t offset, std::uint64_t count = 1) const {
    if (!bytes_ || offset > size_ || count > (size_ - offset) / sizeof(T)) return nullptr;
    return reinterpret_cast<const T*>(bytes_ + offset);
  }

 private:
  const char* bytes_ = nullptr;
  std::size_t size_ = 0;
};

struct Symbol {
  std::string name;
  std::uint64_t offset = 0;
};

/// The function of a file that contains an address, out of its full symbol table; an empty name if there is none.
Symbol function_at(const MappedFile& file, std::uint64_t address) {
  const auto* header = file.at<ElfW(Ehdr)>(0);
  if (!header || header->e_shentsize != sizeof(ElfW(Shdr))) return {};
  const auto* sections = file.at<ElfW(Shdr)>(header->e_shoff, header->e_shnum);
  for (int i = 0; sections && i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header->e_shnum) continue;
    const auto& strings = sections[sections[i].sh_link];
    std::uint64_t count = sections[i].sh_size / sizeof(ElfW(Sym));
    const auto* symbols = file.at<ElfW(Sym)>(sections[i].sh_offset, count);
    const auto* names = file.at<char>(strings.sh_offset, strings.sh_size);
    for (std::uint64_t s = 0; symbols && names && s < count; ++s) {
      const auto& symbol = symbols[s];
      bool inside = address >= symbol.st_value && address - symbol.st_value < symbol.st_size;
      if ((symbol.st_info & 15) != STT_FUNC || !inside || symbol.st_name >= strings.sh_size) continue;
      std::string name(names + symbol.st_name, strnlen(names + symbol.st_name, strings.sh_size - symbol.st_name));
      return {name, address - symbol.st_value};
    }
  }
  return {};
}

std::string hexadecimal(std::uint64_t number) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(number));
  return text;
}

}  // namespace

std::string demangle(const char* name) {
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, &status), std::free);
  return text ? text.get() : name;
}

std::string describe_address(void* address) {
  auto place = reinterpret_cast<std::uint64_t>(address);
  Dl_info info{};
  link_map* module = nullptr;
  if (!dladdr1(address, &info, reinterpret_cast<void**>(&module), RTLD_DL_LINKMAP) || !info.dli_fname)
    return hexadecimal(place);
  std::uint64_t in_file = place - (module ? module->l_addr : 0);
  // The program itself is named as it was called, perhaps from another folder.
  bool is_program = module && module->l_name && !*module->l_name;
  Symbol symbol;
  if (info.dli_sname)
    symbol = {info.dli_sname, place - reinterpret_cast<std::uint64_t>(info.dli_saddr)};
  else
    symbol = function_at(MappedFile(is_program ? "/proc/self/exe" : info.dli_fname), in_file);
  std::string where = std::string(" in ") + info.dli_fname;
  if (symbol.name.empty()) return hexadecimal(in_file) + where;
  return demangle(symbol.name.c_str()) + "+" + hexadecimal(symbol.offset) + where;
}

std::string describe_frames(void* const* frames, int count, int first, bool interrupted) {
  std::string text;
  for (int i = first; i < count; ++i) {
    // What follows a call may belong to the next function; the call itself does not.
    int back = interrupted && i == first ? 0 : 1;
    text += '#' + std::to_string(i - first) + " " + describe_address(static_cast<char*>(frames[i]) - back) + "\n";
  }
  return text;
}

}  // namespace fabric
