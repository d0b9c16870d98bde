// The server of the job's store against clients that belong, strangers, and other jobs' ranks.
#include "plugins/collectives/store/store_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <sstream>

#include <fabric/base/error.h>

#include "plugins/collectives/store/store_sockets.h"
#include "tests/support/catch.h"

using Catch::Contains;
using namespace fabric::collectives;
using fabric::Descriptor;
using std::chrono::milliseconds;
using wire::Greeting;

namespace {

constexpr milliseconds kLong{20000};

Greeting greeting(int rank, const std::string& job = "run id jobA", int world = 3) {
  return {.job = job,
          .world_size = world,
          .rank = rank,
          .who = "process " + std::to_string(100 + rank) + " on host h",
          .token = 100 + rank};
}

struct Server {
  StoreListeners listeners = listen_for_store("127.0.0.1", 0, false);
  int port = listeners.port;
  StoreServer server{std::move(listeners.sockets), greeting(0)};
  StorePlace place() const { return {"127.0.0.1", {port}}; }
  Descriptor join(int rank) const { return find_store(place(), greeting(rank), kLong).socket; }
};

Descriptor connect_to(int port) {
  Descriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<std::uint16_t>(port));
  if (!fd || connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fd.reset();
  return fd;
}

void send_bytes(const Descriptor& fd, const std::string& bytes) {
  [[maybe_unused]] auto sent = send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool closes(const Descriptor& fd, milliseconds limit) {
  char byte;
  pollfd item{.fd = fd.get(), .events = POLLIN, .revents = 0};
  return poll(&item, 1, static_cast<int>(limit.count())) > 0 && recv(fd.get(), &byte, 1, MSG_DONTWAIT) <= 0;
}

// One request and its reply; empty when the connection ends.
std::vector<std::string> call(const Descriptor& fd, wire::Request request, const std::vector<std::string>& keys,
                              const std::vector<std::string>& values = {}, std::int64_t number = 0,
                              std::int64_t* result = nullptr) {
  std::string out, in;
  wire::Writer writer(out);
  writer.number(7);
  writer.byte(static_cast<std::uint8_t>(request));
  writer.texts(keys);
  writer.texts(values);
  writer.number(number);
  writer.finish();
  send_bytes(fd, out);
  bool too_large = false;
  while (true) {
    if (auto frame = wire::frame_in(in, wire::kFrameLimit, too_large)) {
      wire::Reader reader(*frame);
      REQUIRE(reader.number() == 7);
      if (static_cast<wire::Status>(reader.byte()) == wire::Status::refused) return {"refused", reader.text()};
      auto texts = reader.texts();
      if (result) *result = reader.number();
      return texts;
    }
    pollfd item{.fd = fd.get(), .events = POLLIN, .revents = 0};
    char bytes[4096];
    if (poll(&item, 1, static_cast<int>(kLong.count())) <= 0) return {};
    auto count = recv(fd.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (count <= 0) return {};
    in.append(bytes, static_cast<std::size_t>(count));
  }
}

long resident_megabytes() {
  std::ifstream file("/proc/self/statm");
  long whole = 0, resident = 0;
  file >> whole >> resident;
  return resident * sysconf(_SC_PAGESIZE) / (1 << 20);
}

std::string reason_for(const Server& server, const Greeting& who) {
  try {
    find_store(server.place(), who, kLong);
  } catch (const fabric::ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a store keeps, counts, compares and waits", "[store]") {
  Server server;
  auto one = server.join(0), two = server.join(1);
  call(one, wire::Request::set, {"a", "b"}, {"1", "2"});
  CHECK(call(two, wire::Request::get, {"a", "b"}) == std::vector<std::string>{"1", "2"});
  std::int64_t number = 0;
  call(two, wire::Request::add, {"n"}, {}, 40, &number);
  call(one, wire::Request::add, {"n"}, {}, 2, &number);
  CHECK(number == 42);
  CHECK(call(one, wire::Request::compare_set, {"c"}, {"", "x"}) == std::vector<std::string>{"x"});
  CHECK(call(two, wire::Request::compare_set, {"c"}, {"", "y"}) == std::vector<std::string>{"x"});
  CHECK(call(two, wire::Request::compare_set, {"c"}, {"x", "y"}) == std::vector<std::string>{"y"});
  call(one, wire::Request::append, {"c"}, {"z"});
  CHECK(call(two, wire::Request::get, {"c"}) == std::vector<std::string>{"yz"});
  call(one, wire::Request::check, {"a", "q"}, {}, 0, &number);
  CHECK(number == 0);
  call(one, wire::Request::remove, {"a"}, {}, 0, &number);
  CHECK(number == 1);
  call(one, wire::Request::count, {}, {}, 0, &number);
  CHECK(number == 3);
  std::thread late([&] {
    std::this_thread::sleep_for(milliseconds(50));
    call(one, wire::Request::set, {"late"}, {"there"});
  });
  CHECK(call(two, wire::Request::get, {"late", "late"}) == std::vector<std::string>{"there", "there"});
  late.join();
}

TEST_CASE("another job's rank is told so at once, with both names, and the job does not notice", "[store]") {
  Server server;
  auto one = server.join(1);
  auto begin = std::chrono::steady_clock::now();
  auto text = reason_for(server, greeting(1, "run id jobB"));
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  CHECK_THAT(text, Contains("two jobs use one port") && Contains("run id jobA") && Contains("run id jobB") &&
                       Contains("process 100 on host h") && Contains("process 101 on host h"));
  CHECK_THAT(reason_for(server, greeting(1, "run id jobA", 4)), Contains("3 ranks") && Contains("4"));
  auto old = greeting(1);
  old.restart_count = 1;
  CHECK_THAT(reason_for(server, old), Contains("another attempt"));
  call(one, wire::Request::set, {"a"}, {"1"});
  CHECK(call(server.join(2), wire::Request::get, {"a"}) == std::vector<std::string>{"1"});
}

TEST_CASE("a rank that is there twice ends the gathering for all, but not a job that is complete", "[store]") {
  auto second = greeting(1);
  second.token = 999, second.who = "process 999 on host h";
  {
    Server server;
    auto zero = server.join(0), one = server.join(1), again = server.join(1);
    std::vector<std::string> answer;
    std::thread waits([&] { answer = call(zero, wire::Request::get, {"never"}); });
    std::this_thread::sleep_for(milliseconds(50));
    CHECK_THAT(reason_for(server, second), Contains("rank 1") && Contains("twice") && Contains("process 999"));
    waits.join();
    REQUIRE(answer.size() == 2);
    CHECK_THAT(answer[1], Contains("twice"));
    CHECK_THAT(reason_for(server, greeting(2)), Contains("twice"));
  }
  Server server;
  auto zero = server.join(0), one = server.join(1), two = server.join(2);
  CHECK_THAT(reason_for(server, second), Contains("twice"));
  call(zero, wire::Request::set, {"a"}, {"1"});
  CHECK(call(two, wire::Request::get, {"a"}) == std::vector<std::string>{"1"});
}

TEST_CASE("strangers' bytes are the size of nothing", "[store]") {
  Server server;
  auto member = server.join(1);
  auto before = resident_megabytes();
  std::string huge = std::string(wire::kMagic) + std::string(4, '\xff');
  std::mt19937 random(7);
  std::vector<Descriptor> kept;
  for (int turn = 0; turn < 300; ++turn) {
    auto fd = connect_to(server.port);
    REQUIRE(fd);
    std::string bytes = turn % 3 == 0 ? huge : turn % 3 == 1 ? std::string(wire::kMagic) : std::string();
    for (int i = 0; i < 200; ++i) bytes.push_back(static_cast<char>(random()));
    // LibTorch's own protocol, with which such a key once meant an allocation.
    if (turn == 50) bytes = std::string("\x07\x3c\x85\xf3\x3c\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f", 15);
    send_bytes(fd, bytes);
    kept.push_back(std::move(fd));
  }
  CHECK(closes(kept.front(), kLong));
  call(member, wire::Request::set, {"a"}, {"1"});
  CHECK(call(server.join(2), wire::Request::get, {"a"}) == std::vector<std::string>{"1"});
  CHECK(resident_megabytes() - before < 50);
}

TEST_CASE("changed greetings and requests end their own connection at most", "[store]") {
  Server server;
  std::mt19937 random(11);
  std::string good(wire::kMagic);
  wire::write(good, greeting(1));
  auto member = server.join(1);
  for (int turn = 0; turn < 2000; ++turn) {
    auto bytes = good;
    wire::Writer request(bytes);
    request.number(1);
    request.byte(static_cast<std::uint8_t>(random() % 10));
    request.texts({"k", "l"});
    request.texts({"v", std::string(random() % 100, 'x')});
    request.number(3);
    request.finish();
    for (int change = 0; change < 1 + turn % 4; ++change) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (turn % 5 == 0) bytes.resize(random() % bytes.size());
    auto fd = connect_to(server.port);
    REQUIRE(fd);
    send_bytes(fd, bytes);
  }
  // A change may have made another rank of one; the gathering may so be mixed, but the server answers.
  auto answer = call(member, wire::Request::count, {});
  CHECK((answer.empty() || answer.front() == "refused"));
  CHECK_THAT(reason_for(server, greeting(1, "run id jobB")), Contains("run id jobA"));
}

TEST_CASE("silent connections neither keep a rank out nor stay", "[store]") {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  auto raised = limit;
  raised.rlim_cur = std::min<rlim_t>(limit.rlim_max, 4096);
  setrlimit(RLIMIT_NOFILE, &raised);
  Server server;
  std::vector<Descriptor> silent;
  for (int i = 0; i < 600; ++i) silent.push_back(connect_to(server.port));
  auto begin = std::chrono::steady_clock::now();
  auto member = server.join(1);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
  call(member, wire::Request::set, {"a"}, {"1"});
  CHECK(closes(silent.back(), StoreServer::kPatience + kLong));
  CHECK(call(member, wire::Request::get, {"a"}) == std::vector<std::string>{"1"});
  setrlimit(RLIMIT_NOFILE, &limit);
}

TEST_CASE("a store listens where its ranks are", "[store]") {
  auto is_refused = [](const std::string& address, int port) {
    sockaddr_in other{};
    other.sin_family = AF_INET;
    inet_pton(AF_INET, address.c_str(), &other.sin_addr);
    other.sin_port = htons(static_cast<std::uint16_t>(port));
    Descriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return connect(fd.get(), reinterpret_cast<sockaddr*>(&other), sizeof other) != 0;
  };
  auto local = listen_for_store("127.0.0.1", 0, false);
  REQUIRE(local.sockets.size() == 1);
  CHECK(local.own_address == "127.0.0.1");
  CHECK(is_refused("127.0.0.2", local.port));
  CHECK_FALSE(is_refused("127.0.0.1", local.port));
  // Taken: no second one, and errno says why.
  auto second = listen_for_store("127.0.0.1", local.port, false);
  CHECK(second.sockets.empty());
  CHECK(errno == EADDRINUSE);
  // A name of this machine that leads to its loopback only is no place for others.
  auto reachable = listen_for_store("127.0.0.1", 0, true);
  REQUIRE(reachable.sockets.size() == 1);
  CHECK_FALSE(is_refused("127.0.0.2", reachable.port));
  // An address of somebody else.
  auto translated = listen_for_store("192.0.2.7", 0, true);
  REQUIRE(translated.sockets.size() == 1);
  CHECK_FALSE(is_refused("127.0.0.1", translated.port));
}

TEST_CASE("where the first port is another's, ranks find their store at the next", "[store]") {
  Server other;  // of job A
  auto silent = listen_for_store("127.0.0.1", 0, false);
  auto own = listen_for_store("127.0.0.1", 0, false);
  StorePlace place{"127.0.0.1", {other.port, silent.port, own.port}};
  StoreServer server(std::move(own.sockets), greeting(0, "run id jobB"));
  auto found = find_store(place, greeting(1, "run id jobB"), kLong);
  CHECK(found.port == place.ports.back());
  CHECK_THROWS_WITH(find_store({"127.0.0.1", {other.port, silent.port}}, greeting(1, "run id jobB"), milliseconds(300)),
                    Contains("run id jobA") && Contains("timed out"));
}
