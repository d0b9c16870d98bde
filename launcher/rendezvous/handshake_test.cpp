// Who may speak with a launcher, and how a connection of ours ends.
#include "launcher/rendezvous/handshake.h"

#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "launcher/os/visible.h"
#include "launcher/rendezvous/connection.h"
#include "launcher/rendezvous/message.h"
#include "tests/support/catch.h"

using namespace fabric::rendezvous;
using Role = Handshake::Role;
using State = Handshake::State;

namespace {

void exchange(Handshake& client, Handshake& server) {
  for (int i = 0; i < 10; ++i) {
    auto there = client.take_output(), back = server.take_output();
    if (there.empty() && back.empty()) return;
    for (char byte : there) server.feed({&byte, 1});
    for (char byte : back) client.feed({&byte, 1});
  }
}

}  // namespace

TEST_CASE("both ends of one job agree on keys, anew on each connection", "[handshake]") {
  auto key = key_of_job("secret", "job");
  Handshake client(Role::client, key), server(Role::server, key);
  exchange(client, server);
  CHECK(client.state() == State::done);
  CHECK(server.state() == State::done);
  CHECK(client.sending_key() == server.receiving_key());
  CHECK(client.receiving_key() == server.sending_key());
  CHECK(client.sending_key() != client.receiving_key());
  Handshake other(Role::client, key), again(Role::server, key);
  exchange(other, again);
  CHECK(other.sending_key() != client.sending_key());
}

TEST_CASE("another secret and another job are refused by both ends", "[handshake]") {
  auto key = key_of_job("secret", "job");
  for (const auto& wrong : {key_of_job("secrets", "job"), key_of_job("secret", "jobs"), key_of_job("", "")}) {
    Handshake client(Role::client, wrong), server(Role::server, key);
    exchange(client, server);
    CHECK(client.state() == State::refused);
    CHECK(server.state() == State::refused);
  }
  // One that says yes without knowing the key.
  Handshake client(Role::client, key);
  client.feed("FAB2" + std::string(32, 'n'));
  client.feed("Y" + std::string(32, 'p'));
  CHECK(client.state() == State::refused);
}

TEST_CASE("what the other end showed cannot be used again, nor sent back to it", "[handshake]") {
  auto key = key_of_job("secret", "job");
  Handshake client(Role::client, key), server(Role::server, key);
  auto greeting = client.take_output();
  server.feed(greeting);
  client.feed(server.take_output());
  auto proof = client.take_output();
  CHECK(proof.size() == 32);
  // Recorded: a server with a nonce of its own wants another proof.
  Handshake later(Role::server, key);
  later.feed(greeting);
  later.feed(proof);
  CHECK(later.state() == State::refused);
  // Reflected: a client does not take its own words for those of a server.
  Handshake mirror(Role::client, key);
  auto own = mirror.take_output();
  mirror.feed(own);
  mirror.feed("Y" + mirror.take_output());
  CHECK(mirror.state() == State::refused);
  // A stranger that only connects learns a random number.
  Handshake listening(Role::server, key);
  CHECK(listening.take_output().size() == 36);
  listening.feed("FAB2" + std::string(32, 'n'));
  CHECK(listening.take_output().empty());
  CHECK(listening.wanted() == 32);
}

TEST_CASE("strangers and other versions are told apart", "[handshake]") {
  auto state_after = [](std::string_view bytes) {
    Handshake handshake(Role::server, Key{});
    handshake.feed(bytes);
    return handshake.state();
  };
  CHECK(state_after("") == State::running);
  CHECK(state_after("FA") == State::running);
  CHECK(state_after("FAB2") == State::running);
  CHECK(state_after("FAB1") == State::other_version);
  CHECK(state_after("FAB3....") == State::other_version);
  for (const char* text : {"GET / HTTP/1.0\r\n", "FABX", "FX", "\xff"}) CHECK(state_after(text) == State::stranger);
}

TEST_CASE("HMAC-SHA-256 is the one of RFC 4231", "[handshake]") {
  CHECK(in_hex(mac("Jefe", {"what do ya want ", "for nothing?"})) ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  CHECK(is_same(mac("k", {"a", "b"}), as_text(mac("k", {"ab"}))));
  CHECK_FALSE(is_same(mac("k", {"a"}), "short"));
  CHECK(random_key() != random_key());
}

TEST_CASE("the secret of a user is made once, and only a file that nobody else can touch is one", "[handshake]") {
  char name[] = "/tmp/fabric_secret_XXXXXX";
  REQUIRE(mkdtemp(name));
  std::string folder = name, path = folder + "/torchfabric/rendezvous_secret";
  auto secret = secret_of_user(folder);
  CHECK(secret.size() == 64);
  CHECK(secret_of_user(folder) == secret);
  struct stat info;
  REQUIRE(stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  REQUIRE(chmod(path.c_str(), 0640) == 0);
  CHECK(secret_of_user(folder).empty());
  REQUIRE(chmod(path.c_str(), 0600) == 0);
  std::filesystem::rename(path, folder + "/real");
  std::filesystem::create_symlink(folder + "/real", path);
  CHECK(secret_of_user(folder).empty());
  std::filesystem::remove(path);
  REQUIRE(mkfifo(path.c_str(), 0600) == 0);
  CHECK(secret_of_user(folder).empty());
  CHECK(secret_of_user("").empty());
  CHECK(secret_of_user("/proc/no such folder").empty());
  std::filesystem::remove_all(folder);
}

TEST_CASE("a connection that ends is off the list although another process has a copy of its socket", "[connection]") {
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  auto [mine, theirs] = connected_pair();
  int copy = dup(mine.get());  // as a process has one that was forked
  auto connection = std::make_unique<Connection>(epoll, std::move(mine), "test", Handshake::Role::client, Key{});
  theirs.reset();
  epoll_event event;
  CHECK(epoll_wait(epoll, &event, 1, 1000) == 1);
  connection.reset();
  CHECK(epoll_wait(epoll, &event, 1, 50) == 0);
  close(copy);
  close(epoll);
}

TEST_CASE("text of others moves no cursor and forges no line", "[visible]") {
  using fabric::visible;
  using fabric::visible_lines;
  CHECK(visible("plain ü 日本 😀") == "plain ü 日本 😀");
  CHECK(visible("\x1b[2Jgone\a\r\n\t\x7f") == "\\x1b[2Jgone\\x07\\r\\n\\t\\x7f");
  CHECK(visible_lines("one\n\ttwo\r\x1b") == "one\n\ttwo\\r\\x1b");
  CHECK(visible("\xc2\x9b"
                "31m") == "\\xc2\\x9b31m");  // a C1 control in UTF-8
  CHECK(visible("\xff\xc3(\xe2\x82") == "\\xff\\xc3(\\xe2\\x82");
  CHECK(visible("a\xe2\x80\xae"
                "b") == "a\\xe2\\x80\\xaeb");  // right to left
  CHECK(visible(std::string("\0", 1)) == "\\x00");
}
