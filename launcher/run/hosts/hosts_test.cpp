// Lists of hosts, packets, and the line that a far shell is given: what needs no machine.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>

#include <fabric/base/error.h>

#include "launcher/run/hosts/host_flags.h"
#include "launcher/run/hosts/host_list.h"
#include "launcher/run/hosts/host_messages.h"
#include "launcher/run/hosts/packet.h"
#include "launcher/run/hosts/ssh_command.h"
#include "launcher/run/options.h"
#include "tests/support/catch.h"

using namespace fabric::run;
using fabric::ConfigError;
using fabric::MapEnv;

namespace {

std::string text_of(const std::vector<Host>& hosts) {
  std::string text;
  for (const auto& host : hosts)
    text += (text.empty() ? "" : " ") + host.name + "/" + std::to_string(host.slots) +
            (host.max_slots ? '/' + std::to_string(host.max_slots) : "");
  return text;
}

Options parse(std::vector<std::string> words, const MapEnv& env = MapEnv()) {
  words.insert(words.end(), {"--", "./train", "--lr", "1"});
  return parse_options(words, env).options;
}

std::string output_of(const std::string& command) {
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  for (int letter; pipe && (letter = fgetc(pipe.get())) != EOF;) text += static_cast<char>(letter);
  return text;
}

struct Row {
  const char *text, *hosts;
};

}  // namespace

TEST_CASE("lists of hosts are read, SLURM's brackets among them", "[hosts]") {
  for (const auto& [text, hosts] :
       {Row{"host0:4,host1:4", "host0/4 host1/4"}, Row{"a b\nc", "a/0 b/0 c/0"},
        Row{"n[1-3,7]:2,gpu-[08-09]", "n1/2 n2/2 n3/2 n7/2 gpu-08/0 gpu-09/0"}, Row{"a,b,a", "a/2 b/0"},
        Row{"a:3,a:2", "a/5"}, Row{"user@a:2", "user@a/2"}, Row{"[fd00::1]:4,fd00::2", "[fd00::1]/4 fd00::2/0"},
        Row{"[08-09]:1", "08/1 09/1"}, Row{"10.0.0.1:2,", "10.0.0.1/2"}}) {
    INFO(text);
    CHECK(text_of(parse_hosts(text)) == hosts);
  }
  for (const char* wrong : {"", ",", "a:", "a:0", "a:x", "a:99999", "n[3-1]", "n[1-2", "-oProxyCommand=x", "user@-x:1",
                            "@a", "a@", "[fd00::x]:1", "n[1-5000]", "a:1:2"}) {
    INFO(wrong);
    CHECK_THROWS_AS(parse_hosts(wrong), ConfigError);
  }
  CHECK(bare_name({"user@[fd00::1]"}) == "fd00::1");
}

TEST_CASE("hostfiles are read as Open MPI reads them", "[hosts]") {
  const char* text =
      "# the cluster\n\n  node0 slots=4 max_slots=8   # the first\nnode1 slots = 2\tmax-slots=4\nnode2\n"
      "n[1-2] slots=3\nnode3:5\r\nnode2\n";
  CHECK(text_of(parse_hostfile(text, "f")) == "node0/4/8 node1/2/4 node2/2 n1/3 n2/3 node3/5");
  auto error_of = [](const std::string& wrong) {
    try {
      parse_hostfile(wrong, "f");
    } catch (const ConfigError& error) {
      return std::string(error.what());
    }
    return std::string("none");
  };
  CHECK(error_of("a slots=4\nb slot=4").starts_with("f:2: 'slot=4' is not known; did you mean 'slots'?"));
  CHECK(error_of("slots=4").starts_with("f:1: a line begins with the name of a host"));
  CHECK(error_of("a slots=9 max_slots=8").find("more than max_slots=8") != std::string::npos);
  CHECK(error_of("a slots=x").find("'x' is no number of ranks") != std::string::npos);
  CHECK(error_of("# nothing\n").find("names no host") != std::string::npos);
  CHECK_THROWS_AS(read_hostfile("/nowhere/hosts"), ConfigError);
  CHECK_THROWS_AS(read_hostfile("/"), ConfigError);
}

TEST_CASE("ssh's arguments are split as a shell does", "[hosts]") {
  using Words = std::vector<std::string>;
  CHECK(split_words("-F 'my file'  -o \"User=a b\" c\\ d ''", "f") ==
        Words{"-F", "my file", "-o", "User=a b", "c d", ""});
  CHECK(split_words("", "f").empty());
  CHECK_THROWS_AS(split_words("-F 'x", "--ssh-args"), ConfigError);
}

TEST_CASE("packets keep every byte, and nonsense is none", "[hosts]") {
  Packet packet{"job", "", "a\nb 'c' \"d\"", std::string("\0\xff,:", 4)};
  CHECK(unpack(pack(packet)) == packet);
  CHECK(read_packet_line("mark", packet_line("mark", packet).substr(0, packet_line("mark", packet).size() - 1)) ==
        packet);
  CHECK(!read_packet_line("mark", "mark zz"));
  CHECK(!read_packet_line("mark", "[host:0] mark 00"));
  PacketReader reader;
  auto bytes = framed(packet) + framed({"beat"}) + framed({});
  std::vector<Packet> all;
  for (char byte : bytes) {
    reader.feed({&byte, 1});
    while (auto next = reader.next()) all.push_back(*next);
  }
  CHECK(all == std::vector<Packet>{packet, {"beat"}, {}});
  for (const char* wrong : {"x", "3:abcd", "-1:,", "99999999999:", ":,", "1:a,", "100000000:", "5:9:ab,,"}) {
    INFO(wrong);
    PacketReader broken;
    broken.feed(wrong);
    CHECK(!broken.next());
    CHECK(broken.is_broken());
  }
  HostJob job{.secret = "s", .folder = "/a b", .hosts_rendezvous = true, .patience = 2.5, .endpoints = {"h", "::1"}};
  job.port = 7;
  job.words = {"--", "./x", "a\nb"};
  auto read = read_job(to_packet(job));
  REQUIRE(read);
  CHECK(read->patience == 2.5);
  CHECK(read->endpoints == job.endpoints);
  CHECK(read->words == job.words);
  CHECK(read_hello({"hello", "9.9", "of", "another", "form"})->version == "9.9");
}

TEST_CASE("a far shell finds the program, or says that there is none", "[hosts]") {
  auto folder = std::filesystem::temp_directory_path() / ("it's a $(folder) " + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  auto path = (folder / "fabric").string();
  std::ofstream(path) << "#!/bin/sh\necho ran $*\n";
  std::filesystem::permissions(path, std::filesystem::perms::owner_all);
  auto run = [&](const std::string& line) {
    auto script = (folder / "line").string();
    std::ofstream(script) << line;
    return output_of("cd / && PATH=/usr/bin:/bin sh -c 'IFS= read -r line && eval \"$line\"' <" + shell_quoted(script) +
                     " 2>&1");
  };
  CHECK(run(line_to_find("mark", path)) == "ran ssh-host mark\n");
  CHECK(run(line_to_find("mark", "/nowhere/fabric")) == packet_line("mark", {"missing"}));
  CHECK(run(line_to_find("mark", "/new\nline/fabric")) == packet_line("mark", {"missing"}));
  auto program = std::string("#!/bin/sh\necho copy $1 $2; rm -rf \"$3\"\n");
  CHECK(run(line_to_copy("mark", program.size()) + program) == packet_line("mark", {"send"}) + "copy ssh-host mark\n");
  auto cut = run("TMPDIR=" + shell_quoted(folder.string()) + "; " + line_to_copy("mark", program.size() + 1) + program);
  CHECK(cut.find("did not arrive whole") != std::string::npos);
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    CHECK(entry.path().filename().string().find("fabric-copy") == std::string::npos);
  std::filesystem::remove_all(folder);
}

TEST_CASE("ssh asks nothing, and the user's arguments come first where they may", "[hosts]") {
  auto words = ssh_words({"me@[fd00::1]"}, {{"-p", "2222"}, 7, 2});
  auto at = [&](const std::string& word) { return std::find(words.begin(), words.end(), word) - words.begin(); };
  CHECK(words[0] == "ssh");
  CHECK(at("BatchMode=yes") < at("2222"));
  CHECK(at("2222") < at("ServerAliveInterval=7"));
  CHECK(at("ServerAliveCountMax=2") < at("-T"));
  CHECK(words[static_cast<std::size_t>(at("-l")) + 1] == "me");
  CHECK(words[static_cast<std::size_t>(at("--")) + 1] == "fd00::1");
}

TEST_CASE("hosts decide about nodes and workers, and what else was given is handed on", "[hosts]") {
  auto options = parse({"--hosts", "a:4,b", "--max-restarts=2", "--env", "X=a b", "-x", "HERE", "--tee", "3",
                        "--report", "r.json", "--pid-namespace", "--grace", "5"},
                       MapEnv(std::map<std::string, std::string>{{"HERE", "yes"}}));
  CHECK(options.min_nodes == 2);
  CHECK(options.max_nodes == 2);
  CHECK(workers_of(options.hosts[0], options) == "4");
  CHECK(workers_of(options.hosts[1], options) == "1");
  CHECK(options.host_words == std::vector<std::string>{"--max_restarts=2", "--pid_namespace=true", "--tee=3",
                                                       "--env=X=a b", "--env=HERE=yes"});
  CHECK(options.command == std::vector<std::string>{"./train", "--lr", "1"});
  // They are understood where they arrive.
  auto again = parse(options.host_words);
  CHECK(again.pid_namespace);
  CHECK(again.variables == options.variables);
  CHECK(workers_of(parse({"-H", "a:4,b", "-n", "2"}).hosts[1], parse({"-H", "a:4,b", "-n", "2"})) == "2");
  CHECK(parse({"-H", "a,b,c", "--nnodes", "2"}).hosts.size() == 2);
  CHECK(parse({"-H", "a,b,c", "--nnodes", "1:2"}).hosts.size() == 3);
  CHECK(parse({"-H", "a:2", "--devices", "1"}).nproc == "1");
  const std::vector<std::vector<std::string>> wrong = {{"-H", "a", "--hostfile", "f"},
                                                       {"-H", "a", "--mpi"},
                                                       {"-H", "a", "--standalone"},
                                                       {"-H", "a", "--node-rank=0"},
                                                       {"-H", "a", "--nnodes", "2"},
                                                       {"-H", "a:2", "-n", "3"},
                                                       {"-H", "a", "--local-addr=x"},
                                                       {"-H", "a", "--rdzv-conf", "is_host=1"},
                                                       {"-H", "a", "--ssh-args='"},
                                                       {"-x", "NOT_SET"},
                                                       {"--hosts", ""},
                                                       {"--hostfile="}};
  for (const auto& words : wrong) {
    INFO(words[0] << " " << words.back());
    CHECK_THROWS_AS(parse(words), ConfigError);
  }
}

TEST_CASE("what ssh said last has an answer", "[hosts]") {
  CHECK(advice_for("Host key verification failed.", "h").find("fingerprint") != std::string::npos);
  CHECK(advice_for("me@h: Permission denied (publickey).", "h").find("ssh-add") != std::string::npos);
  CHECK(advice_for("ssh: connect to host h port 22: Connection refused", "h").find("sshd") != std::string::npos);
  CHECK(advice_for("something else", "h").empty());
}
