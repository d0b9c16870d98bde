#include <fabric/base/atomic_file_internal.h>

#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <system_error>
#include <vector>

#include "fabric/base/atomic_file_test_support.h"
#include "tests/support/catch.h"

using fabric::as_error;
using fabric::AtomicFile;
using fabric::CheckpointError;
using fabric::Error;
using fabric::write_whole_file;

namespace {

namespace fs = std::filesystem;

// What was synced since the last look, and what is not to be.
std::vector<std::string> synced;
std::string unsyncable;

struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "fabric_atomic_XXXXXX").string();
    REQUIRE(mkdtemp(name.data()));
    path = fs::canonical(name);
    synced.clear();
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
    unsyncable.clear();
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::set<std::string> names() const {
    std::set<std::string> all;
    for (const auto& entry : fs::directory_iterator(path)) all.insert(entry.path().filename());
    return all;
  }
};

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

bool was_synced(const fs::path& path) { return std::find(synced.begin(), synced.end(), path.string()) != synced.end(); }

using Names = std::set<std::string>;

}  // namespace

// In place of the C library's, for the sources under test as well.
extern "C" int fsync(int fd) {
  const std::string path = fs::read_symlink("/proc/self/fd/" + std::to_string(fd));
  if (path == unsyncable) {
    errno = EIO;
    return -1;
  }
  synced.push_back(path);
  return static_cast<int>(syscall(SYS_fsync, fd));
}

// The same, for a file system that knows no locks.
bool without_locks = false;
extern "C" int flock(int fd, int operation) {
  if (without_locks) {
    errno = ENOLCK;
    return -1;
  }
  return static_cast<int>(syscall(SYS_flock, fd, operation));
}

TEST_CASE("what others have planted under the temporary name is not touched, and holds nobody up", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f", planted = folder.path / ".f.partial", victim = folder.path / "victim";
  write_whole_file(victim, "precious");
  const char* kinds[] = {"pipe", "hard link", "symbolic link", "link to nowhere", "folder"};
  for (const char* kind : kinds) {
    INFO(kind);
    const std::string name = kind;
    if (name == "pipe") REQUIRE(mkfifo(planted.c_str(), 0666) == 0);
    if (name == "hard link") fs::create_hard_link(victim, planted);
    if (name == "symbolic link") fs::create_symlink(victim, planted);
    if (name == "link to nowhere") fs::create_symlink(folder.path / "new", planted);
    if (name == "folder") fs::create_directory(planted);
    alarm(20);  // a pipe that nobody reads would hold up whoever opens it
    write_whole_file(path, name);
    alarm(0);
    CHECK(content(path) == name);
    CHECK(content(victim) == "precious");
    CHECK(folder.names() == Names{".f.partial", "f", "victim"});
    fs::remove(planted);
  }
}

TEST_CASE("files that dead writers left go, those of writers at work stay", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  std::ofstream(folder.path / ".f.partial") << "dead";
  std::ofstream(folder.path / ".f.partial-1") << "dead";
  std::ofstream(folder.path / ".f.partial-12-345") << "dead";
  std::ofstream(folder.path / ".fg.partial-1") << "of another file";
  AtomicFile first(path);
  first.write("first");
  CHECK(folder.names() == Names{".f.partial", ".fg.partial-1"});
  AtomicFile second(path);
  second.write("second");
  CHECK(folder.names().size() == 3);
  write_whole_file(path, "third");
  first.commit();
  CHECK(content(path) == "first");
  second.commit();
  CHECK(content(path) == "second");
  CHECK(folder.names() == Names{".fg.partial-1", "f"});
}

TEST_CASE("two writers share no temporary file where there are no locks", "[atomic]") {
  Folder folder;
  without_locks = true;
  const auto path = folder.path / "f";
  {
    AtomicFile first(path), second(path);
    first.write("aaaa");
    second.write("bb");
    first.commit();
    CHECK(content(path) == "aaaa");
    second.commit();
    CHECK(content(path) == "bb");
  }
  without_locks = false;
  CHECK(folder.names() == Names{"f"});
}

TEST_CASE("a whole file is there at once, or the old one", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  write_whole_file(path, "old");
  {
    AtomicFile file(path);
    file.write("ne");
    file.write("w");
    CHECK(file.position() == 3);
    CHECK(content(path) == "old");
  }
  CHECK(content(path) == "old");
  CHECK(folder.names() == Names{"f"});
  write_whole_file(path, "new");
  CHECK(content(path) == "new");
  CHECK(folder.names() == Names{"f"});
  CHECK(was_synced(folder.path));
}

TEST_CASE("errors are of the class asked for and name the file", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  write_whole_file(path, "old");
  CHECK_THROWS_AS(write_whole_file(path / "g", "x", as_error<CheckpointError>), CheckpointError);
  CHECK_THROWS_WITH(write_whole_file(path / "g", "x"),
                    Catch::Contains("f/g' cannot be written") && Catch::Contains("its folder cannot be made"));
  CHECK_THROWS_WITH(write_whole_file(folder.path, "x"), Catch::Contains("it is a folder"));
  CHECK_THROWS_WITH(write_whole_file("", "x"), Catch::Contains("names no file"));
  try {
    write_whole_file(path / "g", "x");
    FAIL("no error");
  } catch (const CheckpointError&) {
    FAIL("the class of another writer");
  } catch (const Error&) {
  }
  CHECK(folder.names() == Names{"f"});
}

TEST_CASE("a write, a sync or a move that fails leaves the old file and nothing else", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  write_whole_file(path, "old");
  {
    FileSizeLimit limit(100);
    CHECK_THROWS_WITH(write_whole_file(path, std::string(200, 'x')), Catch::Contains("File too large"));
    CHECK_THROWS_WITH(write_whole_file(path, std::string(2'000'000, 'x')), Catch::Contains("File too large"));
  }
  unsyncable = folder.path / ".f.partial";
  CHECK_THROWS_WITH(write_whole_file(path, "new"), Catch::Contains("cannot be synced"));
  CHECK(content(path) == "old");
  CHECK(folder.names() == Names{"f"});

  AtomicFile late(folder.path / "taken");
  late.write("x");
  fs::create_directory(folder.path / "taken");
  CHECK_THROWS_WITH(late.commit(), Catch::Contains("cannot be moved into place"));
  CHECK(fs::is_directory(folder.path / "taken"));
}

TEST_CASE("what another user left over is in nobody's way", "[atomic]") {
  Folder folder;
  fs::permissions(folder.path, fs::perms::all);
  auto left_over = folder.path / ".f.partial";
  std::ofstream(left_over) << "theirs";
  fs::permissions(left_over, fs::perms::owner_read);
  const uid_t own = geteuid();
  if (own == 0) REQUIRE(seteuid(65534) == 0);  // root may write everywhere
  std::string failure;
  try {
    write_whole_file(folder.path / "f", "ours");
  } catch (const Error& error) {
    failure = error.what();
  }
  if (own == 0) REQUIRE(seteuid(own) == 0);
  CHECK(failure.empty());
  CHECK(content(folder.path / "f") == "ours");
  CHECK(folder.names() == std::set<std::string>{".f.partial", "f"});
}

TEST_CASE("an error after the move says that the new file is in place", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  write_whole_file(path, "old");
  unsyncable = folder.path;
  CHECK_THROWS_WITH(write_whole_file(path, "new"), Catch::Contains("is in place") && Catch::Contains("f'"));
  CHECK(content(path) == "new");
  CHECK(folder.names() == Names{"f"});
}

TEST_CASE("new folders are synced into those that hold them", "[atomic]") {
  Folder folder;
  write_whole_file(folder.path / "a/b/c/f", "x");
  CHECK(content(folder.path / "a/b/c/f") == "x");
  for (const char* holder : {"", "a", "a/b", "a/b/c"}) {
    INFO(holder);
    CHECK(was_synced(*holder ? folder.path / holder : folder.path));
  }
  synced.clear();
  write_whole_file(folder.path / "a/d/f", "x");
  CHECK(was_synced(folder.path / "a"));
  CHECK_FALSE(was_synced(folder.path));  // had no new name

  unsyncable = folder.path / "a";
  CHECK(fabric::make_folders(folder.path / "a/e") == std::errc::io_error);
  CHECK_FALSE(fabric::make_folders(folder.path / "a/e"));  // is there by now
  CHECK(fabric::make_folders(folder.path / "a/d/f/g") == std::errc::not_a_directory);
  CHECK(fabric::folder_of("f") == ".");
}

TEST_CASE("a device stays a device", "[atomic]") {
  Folder folder;
  write_whole_file("/dev/null", "x");
  CHECK(fs::is_character_file("/dev/null"));
  const auto full = fs::path("/dev/full");
  if (fs::exists(full)) CHECK_THROWS_WITH(write_whole_file(full, "x"), Catch::Contains("No space left"));
  fs::create_symlink("/dev/null", folder.path / "link");
  write_whole_file(folder.path / "link", "x");
  CHECK(fs::is_symlink(folder.path / "link"));
  const auto own = folder.path / "null";
  if (mknod(own.c_str(), S_IFCHR | 0600, makedev(1, 3)) != 0) return;  // root may
  write_whole_file(own, std::string(3'000'000, 'x'));
  CHECK(fs::is_character_file(own));
  const auto disk = folder.path / "disk";
  REQUIRE(mknod(disk.c_str(), S_IFBLK | 0600, makedev(7, 250)) == 0);
  CHECK_THROWS_WITH(write_whole_file(disk, "x"), Catch::Contains("it is a disk"));
  CHECK(folder.names() == Names{"disk", "link", "null"});
}

TEST_CASE("a pipe is written for whoever reads it", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "pipe";
  REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  CHECK_THROWS_WITH(write_whole_file(path, "x"), Catch::Contains("a pipe that nobody reads"));

  int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);
  REQUIRE(reader >= 0);
  write_whole_file(path, "report");
  char text[16] = {};
  CHECK(read(reader, text, sizeof text) == 6);
  CHECK(std::string(text) == "report");

  AtomicFile late(path);
  late.write("x");
  close(reader);
  CHECK_THROWS_WITH(late.commit(), Catch::Contains("Broken pipe"));  // and no SIGPIPE
  sigset_t pending;
  REQUIRE(sigpending(&pending) == 0);
  CHECK(sigismember(&pending, SIGPIPE) == 0);
  CHECK(fs::is_fifo(path));
  CHECK(folder.names() == Names{"pipe"});
}

TEST_CASE("a socket is refused", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "socket";
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.string().copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK_THROWS_WITH(write_whole_file(path, "x"), Catch::Contains("it is a socket"));
  CHECK(fs::is_socket(path));
  close(fd);
}

TEST_CASE("a link stays, and the file that it names is replaced", "[atomic]") {
  Folder folder;
  fs::create_directory(folder.path / "far");
  write_whole_file(folder.path / "far/f", "old");
  fs::create_symlink("far/f", folder.path / "near");
  fs::create_symlink("far/new", folder.path / "dangling");
  write_whole_file(folder.path / "near", "new");
  write_whole_file(folder.path / "dangling", "made");
  CHECK(fs::is_symlink(folder.path / "near"));
  CHECK(content(folder.path / "far/f") == "new");
  CHECK(content(folder.path / "far/new") == "made");
}

TEST_CASE("an open file that is named by way of its descriptor is written on", "[atomic]") {
  Folder folder;
  int fd = open((folder.path / "log").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  REQUIRE(write(fd, "before ", 7) == 7);
  write_whole_file("/dev/fd/" + std::to_string(fd), "report");
  REQUIRE(write(fd, " after", 6) == 6);
  close(fd);
  CHECK(content(folder.path / "log") == "before report after");
}

TEST_CASE("the file that is replaced keeps its owner and permissions", "[atomic]") {
  Folder folder;
  const auto path = folder.path / "f";
  write_whole_file(path, "old");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write | fs::perms::group_read);
  if (geteuid() == 0) REQUIRE(chown(path.c_str(), 1234, 2345) == 0);
  struct stat before = {}, after = {};
  REQUIRE(stat(path.c_str(), &before) == 0);
  write_whole_file(path, "new");
  REQUIRE(stat(path.c_str(), &after) == 0);
  CHECK(after.st_mode == before.st_mode);
  CHECK(after.st_uid == before.st_uid);
  CHECK(after.st_gid == before.st_gid);
}

TEST_CASE("a URL is refused, and makes no folder of its name", "[atomic]") {
  Folder folder;
  const auto before = fs::current_path();
  fs::current_path(folder.path);
  CHECK_THROWS_WITH(write_whole_file("s3://bucket/x", "x"), Catch::Contains("s3:// is not served"));
  CHECK_THROWS_WITH(write_whole_file("file:///tmp/x", "x"), Catch::Contains("without file://"));
  write_whole_file("a://b", "x");  // a folder "a:", as anybody may have
  fs::current_path(before);
  CHECK(folder.names() == Names{"a:"});
}
