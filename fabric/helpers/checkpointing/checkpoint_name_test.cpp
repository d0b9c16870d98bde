#include <fabric/base/error.h>
#include <fabric/helpers/checkpointing/checkpoint_name_internal.h>

#include <cmath>
#include <limits>

#include "tests/support/catch.h"

using Catch::Matchers::Contains;
using fabric::check_checkpoint_name;
using fabric::ConfigError;
using fabric::format_checkpoint_name;
using fabric::Metrics;

TEST_CASE("names are filled in with epoch, step and metrics", "[checkpoint][name]") {
  Metrics metrics{{"val_loss", 0.123456}, {"acc", 3}, {"val/loss", 0.5}, {"epoch_time", 7.25}};
  auto name = [&](const std::string& pattern, bool insert = true) {
    return format_checkpoint_name(pattern, metrics, 2, 6, insert);
  };
  CHECK(name("{epoch}-{step}") == "epoch=2-step=6");
  CHECK(name("{epoch}-{step}", false) == "2-6");
  CHECK(name("{epoch:03d}") == "epoch=002");
  CHECK(name("{epoch}-{val_loss:.2f}") == "epoch=2-val_loss=0.12");
  CHECK(name("epoch={epoch}-validation_loss={val_loss:.2f}", false) == "epoch=2-validation_loss=0.12");
  CHECK(name("{missing:d}") == "missing=0");
  CHECK(name("{missing}") == "missing=0");
  CHECK(name("{missing:.2f}") == "missing=0.00");
  CHECK(name("{acc}") == "acc=3.0");
  CHECK(name("{val_loss}") == "val_loss=0.123456");
  CHECK(name("{val_loss:.3e}", false) == "1.235e-01");
  CHECK(name("{epoch}-{epoch_time:.1f}") == "epoch=2-epoch_time=7.2");
  CHECK(name("loss{val/loss:.2f}", false) == "loss0.50");
  CHECK(name("{val/loss:.2f}") == "val/loss=0.50");
  CHECK(name("plain") == "plain");
  CHECK(name("{step:+05d}|{val_loss:08.3f}|{acc:d}|{val_loss:.1%}|{val_loss:g}", false) ==
        "+0006|0000.123|3|12.3%|0.123456");
}

TEST_CASE("odd numbers have names, too", "[checkpoint][name]") {
  Metrics metrics{{"nan", std::nan("")}, {"inf", -std::numeric_limits<double>::infinity()},
                  {"tiny", 1e-5},        {"huge", 1e300},
                  {"epoch", 12},         {"zero", -0.0}};
  auto name = [&](const std::string& pattern) { return format_checkpoint_name(pattern, metrics, 0, 0, false); };
  CHECK(name("{nan}_{inf}_{nan:d}") == "nan_-inf_nan");
  CHECK(name("{nan:.2f}") == "nan");
  CHECK(name("{tiny}_{huge}_{zero}") == "1e-05_1e+300_-0.0");
  CHECK(name("{huge:.1f}").size() == 303);
  CHECK(name("{epoch}") == "12");  // among the metrics it wins
}

TEST_CASE("names that cannot be read are refused before the run", "[checkpoint][name]") {
  for (std::string pattern : {"{epoch", "epoch}", "{}", "{a{b}}", "{:d}"}) {
    INFO(pattern);
    CHECK_THROWS_AS(check_checkpoint_name(pattern), ConfigError);
  }
  CHECK_THROWS_WITH(check_checkpoint_name("{epoch:>4}"), Contains("'>4'") && Contains("{epoch:02d}"));
  CHECK_THROWS_WITH(check_checkpoint_name("{loss:.2d}"), Contains("no precision"));
  CHECK_THROWS_WITH(check_checkpoint_name("{loss:.f}"), Contains("'.f'"));
  CHECK_THROWS_WITH(check_checkpoint_name("{loss:99999999999d}"), Contains("no size"));
  CHECK_THROWS_WITH(check_checkpoint_name("/tmp/{epoch}"), Contains("relative") && Contains("'/tmp'"));
  CHECK_THROWS_WITH(check_checkpoint_name("{epoch}/"), Contains("folder"));
  CHECK_THROWS_AS(check_checkpoint_name(""), ConfigError);
  CHECK_NOTHROW(check_checkpoint_name("runs/{epoch}"));
}
