// Loads one model with onnxruntime, runs it when asked, and tells times and memory.
//
// It reads one JSON object per line from standard input and answers each with one line, in the words
// of edgecompress/runtimes/_worker.py. It ends with its input, so that nothing is left running on a
// device whose connection is gone. It needs nothing but libc and, once a model is loaded,
// libonnxruntime.so: the memory it holds before that is that of the runtime.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>

#include <cctype>
#include <iostream>
#include <thread>

#include "device.h"
#include "json.h"
#include "ort_api.h"

namespace {

constexpr unsigned kIdleSeconds = 3600;  // a connection that broke without a word ends by then
constexpr std::size_t kAlignment = 64;

struct Kind {
  const char* name;
  std::size_t bytes;
};
// ONNXTensorElementDataType, with numpy's names; those without bytes cannot be handed over.
constexpr Kind kKinds[] = {
    {"undefined", 0}, {"float32", 4}, {"uint8", 1},      {"int8", 1},       {"uint16", 2},
    {"int16", 2},     {"int32", 4},   {"int64", 8},      {"string", 0},     {"bool", 1},
    {"float16", 2},   {"float64", 8}, {"uint32", 4},     {"uint64", 8},     {"complex64", 8},
    {"complex128", 16}, {"bfloat16", 2}};
constexpr int kKindCount = sizeof kKinds / sizeof *kKinds;

struct Input {
  std::string name;
  std::vector<std::int64_t> shape;
  void* data = nullptr;
  ort::Value* value = nullptr;
};

class Agent {
 public:
  std::string answer(const json::Value& request) {
    const std::string& what = request.at("do").text;
    if (what == "facts") return device::facts();
    if (what == "open") return open(request);
    if (what == "load") return load(request);
    const bool known = what == "feed" || what == "run" || what == "outputs" || what == "memory" ||
                       what == "end_profiling";
    if (!known) throw std::runtime_error("unknown request " + what);
    if (!session_) throw std::runtime_error("no model is loaded");
    if (what == "feed") return feed(request);
    if (what == "run") return run(request);
    if (what == "outputs") return outputs(request);
    if (what == "memory") return memory();
    return end_profiling();
  }

 private:
  std::string open(const json::Value& request) {
    ort_.open(request.at("library").text);
    char** names = nullptr;
    int count = 0;
    ort_.check(ort_.GetAvailableProviders(&names, &count));
    const std::vector<std::string> available(names, names + count);
    return json::Object()
        .add("version", ort_.version())
        .raw("available", json::array(available, json::quoted))
        .str();
  }

  std::string load(const json::Value& request) {
    if (ort_.version().empty()) throw std::runtime_error("no runtime is open");
    watch_input();
    ort_.check(ort_.CreateEnv(ort::kErrorsOnly, "edgecompress", &env_));
    ort_.check(ort_.DisableTelemetryEvents(env_));
    ort_.check(ort_.CreateCpuMemoryInfo(ort::kArenaAllocator, ort::kDefaultMemory, &memory_));
    ort_.check(ort_.GetAllocatorWithDefaultOptions(&allocator_));
    const int threads = static_cast<int>(request.at("threads").number);
    const std::vector<int> cpus = device::pin(threads);
    take_inputs(request.at("inputs"));
    device::forget_peak();
    const double before = device::status_mb("VmHWM");
    const double start = device::seconds(CLOCK_MONOTONIC);
    ort::SessionOptions* options = session_options(request, threads);
    const std::string provider = append_provider(request, options);
    ort_.check(ort_.CreateSession(env_, request.at("model").text.c_str(), options, &session_));
    const double load_ms = (device::seconds(CLOCK_MONOTONIC) - start) * 1e3;
    name_outputs();
    std::vector<std::string> providers{"CPUExecutionProvider"};
    if (provider != providers[0]) providers.insert(providers.begin(), provider);
    return json::Object()
        .add("load_ms", load_ms)
        .add("runner_mb", before)
        .add("version", ort_.version())
        .raw("providers", json::array(providers, json::quoted))
        .raw("cpus", json::array(cpus, [](int cpu) { return std::to_string(cpu); }))
        .str();
  }

  ort::SessionOptions* session_options(const json::Value& request, int threads) {
    ort::SessionOptions* options = nullptr;
    ort_.check(ort_.CreateSessionOptions(&options));
    ort_.check(ort_.SetSessionLogSeverityLevel(options, ort::kErrorsOnly));
    ort_.check(ort_.SetIntraOpNumThreads(options, threads));
    ort_.check(ort_.SetInterOpNumThreads(options, 1));
    ort_.check(ort_.SetSessionGraphOptimizationLevel(options, ort::kAllOptimizations));
    if (const json::Value* config = request.find("config"))
      for (const auto& entry : config->members)
        ort_.check(ort_.AddSessionConfigEntry(options, entry.first.c_str(), entry.second.text.c_str()));
    const std::string trace = request.string_or("trace", "");
    if (!trace.empty()) ort_.check(ort_.EnableProfiling(options, trace.c_str()));
    return options;
  }

  // By the general function where the library knows the name, else by the provider's own one.
  std::string append_provider(const json::Value& request, ort::SessionOptions* options) {
    const std::string provider = request.string_or("provider", "CPUExecutionProvider");
    if (provider == "CPUExecutionProvider") return provider;
    std::string name = provider.substr(0, provider.rfind("ExecutionProvider"));
    using Own = ort::Status* (*)(ort::SessionOptions*, std::uint32_t);
    if (void* own = ort_.symbol("OrtSessionOptionsAppendExecutionProvider_" + name)) {
      ort_.check(reinterpret_cast<Own>(own)(options, 0));
      return provider;
    }
    std::vector<const char*> keys, values;
    if (const json::Value* given = request.find("provider_options"))
      for (const auto& entry : given->members) {
        keys.push_back(entry.first.c_str());
        values.push_back(entry.second.text.c_str());
      }
    if (name == "Xnnpack")
      for (char& c : name) c = static_cast<char>(std::toupper(c));
    ort_.check(ort_.AppendExecutionProvider(options, name.c_str(), keys.data(), values.data(),
                                            keys.size()));
    return provider;
  }

  void name_outputs() {
    std::size_t count = 0;
    ort_.check(ort_.SessionGetOutputCount(session_, &count));
    for (std::size_t i = 0; i < count; ++i) {
      char* name = nullptr;
      ort_.check(ort_.SessionGetOutputName(session_, i, allocator_, &name));
      output_names_.push_back(name);
    }
  }

  void take_inputs(const json::Value& given) {
    for (Input& input : inputs_) {
      ort_.ReleaseValue(input.value);
      std::free(input.data);
    }
    inputs_.clear();
    inputs_.reserve(given.items.size());
    for (const json::Value& item : given.items) {
      inputs_.emplace_back();
      take_input(item, inputs_.back());
    }
    input_names_.clear();
    values_.clear();
    for (const Input& input : inputs_) {
      input_names_.push_back(input.name.c_str());
      values_.push_back(input.value);
    }
  }

  void take_input(const json::Value& item, Input& input) {
    input.name = item.at("name").text;
    const std::string& dtype = item.at("dtype").text;
    int kind = 0;
    while (kind < kKindCount && dtype != kKinds[kind].name) ++kind;
    if (kind == kKindCount || !kKinds[kind].bytes)
      throw std::runtime_error("input " + input.name + ": type " + dtype + " cannot be handed over");
    std::size_t bytes = kKinds[kind].bytes;
    for (const json::Value& length : item.at("shape").items) {
      input.shape.push_back(std::atoll(length.text.c_str()));
      bytes *= static_cast<std::size_t>(input.shape.back());
    }
    if (posix_memalign(&input.data, kAlignment, bytes + 1)) throw std::bad_alloc();
    const std::string& file = item.at("file").text;
    std::ifstream in(file, std::ios::binary);
    if (!in.read(static_cast<char*>(input.data), static_cast<std::streamsize>(bytes)))
      throw std::runtime_error("input " + input.name + ": " + file + " is too short");
    ort_.check(ort_.CreateTensorWithData(memory_, input.data, bytes, input.shape.data(),
                                         input.shape.size(), kind, &input.value));
  }

  std::string feed(const json::Value& request) {
    take_inputs(request.at("inputs"));
    return "{}";
  }

  std::vector<ort::Value*> step() {
    std::vector<ort::Value*> results(output_names_.size(), nullptr);
    ort_.check(ort_.Run(session_, nullptr, input_names_.data(), values_.data(), values_.size(),
                        output_names_.data(), results.size(), results.data()));
    return results;
  }

  void release(const std::vector<ort::Value*>& values) {
    for (ort::Value* value : values) ort_.ReleaseValue(value);
  }

  std::string run(const json::Value& request) {
    const int count = static_cast<int>(request.at("count").number);
    const json::Value* warm = request.find("warm");
    if (!warm || warm->number != 0) release(step());
    std::vector<double> wall_ms, cpu_ms;
    for (int i = 0; i < count; ++i) {
      const double cpu = device::seconds(CLOCK_PROCESS_CPUTIME_ID);
      const double wall = device::seconds(CLOCK_MONOTONIC);
      const std::vector<ort::Value*> results = step();
      wall_ms.push_back((device::seconds(CLOCK_MONOTONIC) - wall) * 1e3);
      cpu_ms.push_back((device::seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e3);
      release(results);
    }
    const auto write = [](double value) { return json::number(value); };
    return json::Object()
        .raw("wall_ms", json::array(wall_ms, write))
        .raw("cpu_ms", json::array(cpu_ms, write))
        .str();
  }

  std::string outputs(const json::Value& request) {
    const std::vector<ort::Value*> results = step();
    std::vector<std::string> rows;
    for (std::size_t i = 0; i < results.size(); ++i)
      rows.push_back(write_output(output_names_[i], results[i],
                                  request.at("folder").text + "/out" + std::to_string(i)));
    release(results);
    return json::Object().raw("outputs", json::array(rows, [](const auto& row) { return row; })).str();
  }

  std::string write_output(const std::string& name, ort::Value* value, const std::string& file) {
    int type = 0, kind = 0;
    ort_.check(ort_.GetValueType(value, &type));
    if (type != ort::kTensor) throw std::runtime_error("output " + name + " is not a tensor");
    ort::TensorInfo* info = nullptr;
    ort_.check(ort_.GetTensorTypeAndShape(value, &info));
    std::size_t rank = 0, elements = 0;
    ort_.check(ort_.GetTensorElementType(info, &kind));
    ort_.check(ort_.GetDimensionsCount(info, &rank));
    std::vector<std::int64_t> shape(rank);
    ort_.check(ort_.GetDimensions(info, shape.data(), rank));
    ort_.check(ort_.GetTensorShapeElementCount(info, &elements));
    ort_.ReleaseTensorInfo(info);
    if (kind >= kKindCount || !kKinds[kind].bytes)
      throw std::runtime_error("output " + name + " has a type that cannot be handed over");
    void* data = nullptr;
    ort_.check(ort_.GetTensorMutableData(value, &data));
    std::ofstream out(file, std::ios::binary);
    out.write(static_cast<const char*>(data),
              static_cast<std::streamsize>(elements * kKinds[kind].bytes));
    if (!out.flush()) throw std::runtime_error("output " + name + " cannot be written: " + file);
    return json::Object()
        .add("name", name)
        .add("dtype", kKinds[kind].name)
        .raw("shape", json::array(shape, [](std::int64_t n) { return json::number(n); }))
        .add("file", file)
        .str();
  }

  std::string memory() {
    json::Object arena;
    if (ort_.AllocatorGetStats) {
      ort::Allocator* own = nullptr;
      ort_.check(ort_.CreateAllocator(session_, memory_, &own));
      ort::KeyValuePairs* pairs = nullptr;
      ort_.check(ort_.AllocatorGetStats(own, &pairs));
      const char* const* keys = nullptr;
      const char* const* values = nullptr;
      std::size_t count = 0;
      ort_.GetKeyValuePairs(pairs, &keys, &values, &count);
      for (std::size_t i = 0; i < count; ++i) arena.add(keys[i], std::atof(values[i]));
      ort_.ReleaseKeyValuePairs(pairs);
    }
    return json::Object()
        .add("peak_mb", device::status_mb("VmHWM"))
        .add("basis", "vmhwm")
        .add("anonymous_mb", device::status_mb("RssAnon"))
        .add("file_mb", device::status_mb("RssFile"))
        .add("shared_mb", device::status_mb("RssShmem"))
        .raw("group", "null")
        .raw("arena", arena.str())
        .add("cpu_s", device::seconds(CLOCK_PROCESS_CPUTIME_ID))
        .str();
  }

  std::string end_profiling() {
    char* file = nullptr;
    ort_.check(ort_.SessionEndProfiling(session_, allocator_, &file));
    return json::Object().add("profile", file).str();
  }

  // Once a model runs, a request may take long; the far side may be gone before it is answered.
  void watch_input() {
    std::thread([] {
      pollfd input{STDIN_FILENO, 0, 0};
      while (poll(&input, 1, -1) < 0) {
      }
      _exit(0);
    }).detach();
  }

  ort::Api ort_;
  ort::Env* env_ = nullptr;
  ort::MemoryInfo* memory_ = nullptr;
  ort::Allocator* allocator_ = nullptr;
  ort::Session* session_ = nullptr;
  std::vector<Input> inputs_;
  std::vector<const char*> input_names_, output_names_;
  std::vector<const ort::Value*> values_;
};

std::string answered(Agent& agent, const std::string& line) {
  try {
    return agent.answer(json::Reader(line).read());
  } catch (const ort::Error& error) {
    return json::Object().add("error", error.what()).add("kind", error.kind()).str();
  } catch (const std::bad_alloc&) {
    return json::Object().add("error", "out of memory").add("kind", "MemoryError").str();
  } catch (const std::exception& error) {
    return json::Object().add("error", error.what()).add("kind", "AgentError").str();
  }
}

}  // namespace

int main() {
  // Newer builds of onnxruntime report home unless told before they are loaded.
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  std::ofstream("/proc/self/oom_score_adj") << "1000";  // where memory runs out, end first
  signal(SIGINT, SIG_IGN);  // of the terminal; the far side decides what becomes of us
  FILE* answers = fdopen(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3), "w");
  dup2(STDERR_FILENO, STDOUT_FILENO);  // whatever the runtime prints is not an answer
  Agent agent;
  alarm(kIdleSeconds);
  for (std::string line; std::getline(std::cin, line); alarm(kIdleSeconds)) {
    alarm(0);
    const std::string text = answered(agent, line);
    if (std::fprintf(answers, "%s\n", text.c_str()) < 0 || std::fflush(answers)) break;
  }
  std::fflush(nullptr);
  _exit(0);  // the runtime's own threads and destructors have nothing to save
}
