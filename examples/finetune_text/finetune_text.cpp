// Fine-tunes a pretrained sentence encoder, all-MiniLM-L6-v2, to tell positive from negative film reviews, in three
// ways: a new head on the encoder as it is; head first, then layer after layer by schedule.yaml; everything at once.
//
//   ./dev example finetune_text                     fetches weights and reviews, then runs this in two processes
//   finetune_text --data DIR --ways schedule        one of the ways
//   finetune_text --help                            every setting
//
// fabric/docs/finetuning.md explains the helpers of the loop in `Experiment::run`.

#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <iomanip>
#include <optional>
#include <sstream>

#include <fabric/fabric.h>
#include <fabric/helpers.h>
#include <fabric/optim/fused.h>
#include <fabric/utilities/learning_curve.h>

#include "../memory_of_ranks.h"
#include "classifier.h"
#include "reviews.h"

struct Config {
  std::string data;
  std::vector<std::string> ways = {"head", "schedule", "all"};
  std::string schedule = FINETUNE_TEXT_FOLDER "/schedule.yaml";
  std::string reference = FINETUNE_TEXT_FOLDER "/reference.json";
  std::string out = "out/finetune_text";
  int batch_size = 64;
  double head_lr = 1e-2;
  double encoder_lr = 5e-5;
  double lr_decay = 0.8;
  int patience = 1;
  int head_epochs = 4;
  int schedule_epochs = 7;
  int all_epochs = 3;
  int batches = 0;
  int seed = 42;
  fabric::Fabric::Config fabric = {.strategy = "ddp", .devices = 2};
  FABRIC_FIELDS(Config, data, ways, schedule, reference, out, batch_size, head_lr, encoder_lr, lr_decay, patience,
                head_epochs, schedule_epochs, all_epochs, batches, seed, fabric)
  FABRIC_HELP(Config, (data, "folder with model.safetensors, vocab.txt and movieReviewSnippets_GroundTruth.txt"),
              (ways, "what to train: head, schedule, all"), (schedule, "when which parameters are thawed"),
              (reference, "what Python's encoder makes of some sentences"), (batch_size, "over all processes together"),
              (head_lr, "learning rate of the new head"), (encoder_lr, "learning rate of the encoder, all at once"),
              (lr_decay, "learning rates are multiplied by this after each epoch"),
              (patience, "epochs without a better validation loss that end a phase, the last one the run"),
              (head_epochs, "at most"), (schedule_epochs, "at most"), (all_epochs, "at most"),
              (batches, "of each pass over the data, for a short try; 0: all"))
  void validate() const {
    for (const auto& way : ways)
      if (way != "head" && way != "schedule" && way != "all")
        throw fabric::ConfigError("ways: '" + way + "' is not known; there are head, schedule and all");
    if (data.empty())
      throw fabric::ConfigError(
          "data: the folder with the weights and the reviews must be given; ./dev example finetune_text fetches them");
  }
};

struct Outcome {
  std::string name;
  int epochs = 0;
  int64_t trained = 0;  // parameters
  double seconds = 0;
  double validation = 0, test = 0;  // accuracy of the best epoch's weights
};

// The same data, encoder and loop for each way.
class Experiment {
 public:
  Experiment(fabric::Fabric& fabric, const Config& config, const WordPiece& tokenizer)
      : fabric_(fabric), config_(config) {
    auto read = [&](Split split) {
      return std::make_shared<Reviews>(config.data + "/movieReviewSnippets_GroundTruth.txt", tokenizer, split);
    };
    auto train = read(Split::train), validation = read(Split::validation), test = read(Split::test);
    fabric.print(train->size(), " snippets for training, ", validation->size(), " for validation, ", test->size(),
                 " for the test");
    test_size_ = test->size();
    auto per_rank = static_cast<size_t>(std::max(config.batch_size / fabric.world_size(), 1));
    train_.emplace(fabric.setup_dataloader(
        train, {.batch_size = per_rank, .shuffle = true, .batch_sampler = batches_by_length(*train)}));
    validation_.emplace(exact_loader(validation, per_rank));
    test_.emplace(exact_loader(test, per_rank));
  }

  Outcome run(const std::string& way);
  size_t test_size() const { return test_size_; }
  const fabric::LearningCurve& curve() const { return curve_; }
  const fabric::LearningCurve& accuracy() const { return accuracy_; }

 private:
  using Loader = fabric::DataLoader<ReviewBatch>;
  using Model = fabric::FabricModule<ClassifierImpl>;
  using Optimizer = fabric::FabricOptimizer;

  static fabric::BatchSamplerOption batches_by_length(const Reviews& reviews) {
    return
        [lengths = reviews.lengths()](auto sampler, size_t batch_size, bool) -> std::shared_ptr<fabric::BatchSampler> {
          return std::make_shared<LengthBatches>(sampler, batch_size, lengths);
        };
  }
  // Each sample on exactly one rank: the padding that gives all ranks equally many would count some twice.
  Loader exact_loader(std::shared_ptr<Reviews> reviews, size_t per_rank) {
    std::vector<size_t> mine;
    for (auto i = static_cast<size_t>(fabric_.global_rank()); i < reviews->size();
         i += static_cast<size_t>(fabric_.world_size()))
      mine.push_back(i);
    auto batches = batches_by_length(*reviews);
    return fabric_.setup_dataloader(
        reviews, {.batch_size = per_rank, .sampler = mine, .batch_sampler = batches, .use_distributed_sampler = false});
  }
  fabric::optim::AdamW make_optimizer(Classifier& net, bool everything) const;
  double train_epoch(Model& model, Optimizer& optimizer, const std::string& label);
  fabric::Metrics validate(Model& model, Loader& loader);

  fabric::Fabric& fabric_;
  const Config& config_;
  std::optional<Loader> train_, validation_, test_;
  size_t test_size_ = 0;
  fabric::LearningCurve curve_{"film reviews: ways to fine-tune"};
  fabric::LearningCurve accuracy_{"validation accuracy by epoch"};
};

fabric::optim::AdamW Experiment::make_optimizer(Classifier& net, bool everything) const {
  using Group = torch::optim::OptimizerParamGroup;
  auto options = [](double lr) { return torch::optim::AdamWOptions(lr); };
  std::vector<Group> groups{
      Group(net->head->parameters(), std::make_unique<torch::optim::AdamWOptions>(options(config_.head_lr)))};
  if (everything)
    groups.emplace_back(net->bert->parameters(),
                        std::make_unique<torch::optim::AdamWOptions>(options(config_.encoder_lr)));
  return fabric::optim::AdamW(groups, options(config_.head_lr));
}

double Experiment::train_epoch(Model& model, Optimizer& optimizer, const std::string& label) {
  fabric::MeanMetric mean(fabric_);
  int seen = 0;
  model->train();
  for (auto& batch : fabric_.progress(*train_, label)) {
    optimizer.zero_grad();
    auto loss = torch::nn::functional::cross_entropy(model(batch.ids, batch.mask), batch.labels);
    fabric_.backward(loss);
    optimizer.step();
    mean.update(loss.detach(), static_cast<double>(batch.labels.size(0)));
    if (++seen == config_.batches) break;
  }
  return mean.compute();
}

fabric::Metrics Experiment::validate(Model& model, Loader& loader) {
  torch::NoGradGuard no_grad;
  fabric::MeanMetric loss(fabric_);
  fabric::Accuracy accuracy(fabric_);
  int seen = 0;
  model->eval();
  for (auto& batch : loader) {
    auto logits = model(batch.ids, batch.mask);
    loss.update(torch::nn::functional::cross_entropy(logits, batch.labels), static_cast<double>(batch.labels.size(0)));
    accuracy.update(logits, batch.labels);
    if (++seen == config_.batches) break;
  }
  return {{"val_loss", loss.compute()}, {"val_accuracy", accuracy.compute()}};
}

Outcome Experiment::run(const std::string& way) {
  auto start = std::chrono::steady_clock::now();
  auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  bool scheduled = way == "schedule", everything = way == "all";
  int max_epochs = scheduled ? config_.schedule_epochs : everything ? config_.all_epochs : config_.head_epochs;
  fabric_.print("\n--- ", way);

  torch::manual_seed(config_.seed);  // the same new head for each way
  Classifier net;
  net->bert->load(config_.data + "/model.safetensors");
  if (way == "head")
    for (auto& parameter : net->bert->parameters()) parameter.requires_grad_(false);
  auto [model, optimizer] = fabric_.setup(net, make_optimizer(net, everything));
  torch::manual_seed(config_.seed + 1 + fabric_.global_rank());  // each rank its own dropout

  fabric::ExponentialLR lr_scheduler(*optimizer, {.gamma = config_.lr_decay});
  fabric::EarlyStopping stop({.monitor = "val_loss", .patience = config_.patience}, fabric_);
  fabric::ModelCheckpoint keep({.dirpath = config_.out + "/" + way, .monitor = "val_loss"}, fabric_);
  std::optional<fabric::FinetuningScheduler> schedule;
  if (scheduled) {
    fabric::FinetuningScheduler::Config settings;
    settings.ft_schedule = config_.schedule;
    settings.log_dir = config_.out;
    settings.max_epochs = max_epochs;
    schedule.emplace(settings, model, optimizer, lr_scheduler);
    schedule->attach(stop, keep);
    fabric_.print(schedule->table());
  }
  auto state = [&, &model = model, &optimizer = optimizer] {
    fabric::State state{{"model", model}, {"optimizer", optimizer}};
    if (schedule) state["schedule"] = *schedule;
    return state;
  };

  Outcome outcome{.name = way};
  for (int epoch = 0; epoch < max_epochs && !stop.stopped(); ++epoch) {
    train_->set_epoch(epoch);  // each way sees the data in the same order
    if (schedule) schedule->epoch_start(epoch);
    double began = seconds();
    double loss = train_epoch(model, optimizer, way + ", epoch " + std::to_string(epoch));
    auto metrics = validate(model, *validation_);
    stop.check(metrics, epoch);
    keep.update(metrics, state, {.epoch = epoch});
    if (schedule)
      schedule->epoch_end(metrics);
    else
      lr_scheduler.step();
    outcome.epochs = epoch + 1;
    outcome.trained = trained_numbers(*net);
    curve_.add(way + ": training loss", epoch, loss);
    curve_.add(way + ": validation loss", epoch, metrics["val_loss"]);
    curve_.add(way + ": validation accuracy", epoch, metrics["val_accuracy"]);
    accuracy_.add(way, epoch, metrics["val_accuracy"]);
    fabric_.print("epoch ", epoch, schedule ? "  phase " + std::to_string(schedule->curr_depth()) : "", "  loss ", loss,
                  "  val_loss ", metrics["val_loss"], "  val_accuracy ", metrics["val_accuracy"], "  ",
                  std::lround(seconds() - began), " s");
  }
  if (schedule) fabric_.print(schedule->table());
  if (stop.stopped()) fabric_.print("stopped: ", stop.message());

  fabric::State best{{"model", model}};
  fabric_.load(keep.best_model_path(), best);
  outcome.validation = validate(model, *validation_)["val_accuracy"];
  outcome.test = validate(model, *test_)["val_accuracy"];
  outcome.seconds = seconds();
  return outcome;
}

void print_outcomes(fabric::Fabric& fabric, const std::vector<Outcome>& outcomes, size_t test_size) {
  std::ostringstream table;
  table << "\n"
        << std::left << std::setw(10) << "way" << std::right << std::setw(8) << "epochs" << std::setw(12) << "trained"
        << std::setw(9) << "seconds" << std::setw(14) << "validation %" << std::setw(9) << "test %"
        << "\n"
        << std::fixed << std::setprecision(1);
  double worst = 0;
  for (const auto& outcome : outcomes) {
    table << std::left << std::setw(10) << outcome.name << std::right << std::setw(8) << outcome.epochs << std::setw(12)
          << outcome.trained << std::setw(9) << std::lround(outcome.seconds) << std::setw(14)
          << 100 * outcome.validation << std::setw(9) << 100 * outcome.test << "\n";
    worst = std::max(worst, outcome.test * (1 - outcome.test));
  }
  fabric.print(table.str(),
               "trained: numbers that got gradients in the last epoch. One standard error of a test accuracy is ",
               std::lround(1000 * std::sqrt(worst / static_cast<double>(test_size))) / 10.0, " points.");
}

int main(int argc, char** argv) {
  auto config = fabric::parse<Config>(argc, argv);
  fabric::Fabric fabric(config.fabric);
  fabric.launch();
  fabric.seed_everything(config.seed);

  WordPiece tokenizer(config.data + "/vocab.txt");
  SentenceEncoder pretrained;
  pretrained->load(config.data + "/model.safetensors");
  double difference = difference_to_python(pretrained, tokenizer, config.reference);
  fabric.print("sentence vectors differ from Python's by ", difference, " at most");
  if (!(difference < 1e-4)) return 1;

  Experiment experiment(fabric, config, tokenizer);
  std::vector<Outcome> outcomes;
  for (const auto& way : config.ways) outcomes.push_back(experiment.run(way));
  if (fabric.is_global_zero()) {
    experiment.accuracy().print();
    experiment.curve().write_svg(config.out + "/learning_curve.svg");
  }
  print_outcomes(fabric, outcomes, experiment.test_size());
  fabric.print("learning curve: ", config.out, "/learning_curve.svg");
  print_memory_of_ranks(fabric);
}
