// The part of onnxruntime's C interface that the agent uses, reached through dlopen.
//
// OrtApi is a table of functions that onnxruntime only ever appends to: the place of a function is
// fixed once it is released (onnxruntime_c_api.h says so, and its sources assert it). So a place and
// a signature are all that is needed of its headers.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ort {

struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;
struct TensorInfo;
struct KeyValuePairs;

constexpr int kErrorsOnly = 3;       // ORT_LOGGING_LEVEL_ERROR
constexpr int kAllOptimizations = 99;  // ORT_ENABLE_ALL
constexpr int kArenaAllocator = 1;   // OrtArenaAllocator
constexpr int kDefaultMemory = 0;    // OrtMemTypeDefault
constexpr int kTensor = 1;           // ONNX_TYPE_TENSOR

// X(place in the table, result, name, parameters)
#define EDGECOMPRESS_ORT_FUNCTIONS(X)                                                             \
  X(1, int, GetErrorCode, const Status*)                                                          \
  X(2, const char*, GetErrorMessage, const Status*)                                               \
  X(3, Status*, CreateEnv, int, const char*, Env**)                                               \
  X(6, Status*, DisableTelemetryEvents, const Env*)                                               \
  X(7, Status*, CreateSession, const Env*, const char*, const SessionOptions*, Session**)         \
  X(9, Status*, Run, Session*, const RunOptions*, const char* const*, const Value* const*,        \
    std::size_t, const char* const*, std::size_t, Value**)                                        \
  X(10, Status*, CreateSessionOptions, SessionOptions**)                                          \
  X(14, Status*, EnableProfiling, SessionOptions*, const char*)                                   \
  X(22, Status*, SetSessionLogSeverityLevel, SessionOptions*, int)                                \
  X(23, Status*, SetSessionGraphOptimizationLevel, SessionOptions*, int)                          \
  X(24, Status*, SetIntraOpNumThreads, SessionOptions*, int)                                      \
  X(25, Status*, SetInterOpNumThreads, SessionOptions*, int)                                      \
  X(31, Status*, SessionGetOutputCount, const Session*, std::size_t*)                             \
  X(37, Status*, SessionGetOutputName, const Session*, std::size_t, Allocator*, char**)           \
  X(49, Status*, CreateTensorWithData, const MemoryInfo*, void*, std::size_t,                     \
    const std::int64_t*, std::size_t, int, Value**)                                               \
  X(51, Status*, GetTensorMutableData, Value*, void**)                                            \
  X(60, Status*, GetTensorElementType, const TensorInfo*, int*)                                   \
  X(61, Status*, GetDimensionsCount, const TensorInfo*, std::size_t*)                             \
  X(62, Status*, GetDimensions, const TensorInfo*, std::int64_t*, std::size_t)                    \
  X(64, Status*, GetTensorShapeElementCount, const TensorInfo*, std::size_t*)                     \
  X(65, Status*, GetTensorTypeAndShape, const Value*, TensorInfo**)                               \
  X(67, Status*, GetValueType, const Value*, int*)                                                \
  X(69, Status*, CreateCpuMemoryInfo, int, int, MemoryInfo**)                                     \
  X(78, Status*, GetAllocatorWithDefaultOptions, Allocator**)                                     \
  X(93, void, ReleaseStatus, Status*)                                                             \
  X(96, void, ReleaseValue, Value*)                                                               \
  X(99, void, ReleaseTensorInfo, TensorInfo*)                                                     \
  X(110, Status*, SessionEndProfiling, Session*, Allocator*, char**)                              \
  X(125, Status*, GetAvailableProviders, char***, int*)                                           \
  X(130, Status*, AddSessionConfigEntry, SessionOptions*, const char*, const char*)               \
  X(131, Status*, CreateAllocator, const Session*, const MemoryInfo*, Allocator**)                \
  X(216, Status*, AppendExecutionProvider, SessionOptions*, const char*, const char* const*,      \
    const char* const*, std::size_t)

// Since version 1.23.
#define EDGECOMPRESS_ORT_NEWER_FUNCTIONS(X)                                                       \
  X(298, void, GetKeyValuePairs, const KeyValuePairs*, const char* const**, const char* const**,  \
    std::size_t*)                                                                                 \
  X(300, void, ReleaseKeyValuePairs, KeyValuePairs*)                                              \
  X(319, Status*, AllocatorGetStats, const Allocator*, KeyValuePairs**)

constexpr unsigned kOldest = 12;  // the first with AppendExecutionProvider
constexpr unsigned kNewest = 23;  // the first with AllocatorGetStats

class Error : public std::runtime_error {
 public:
  Error(const std::string& text, int code) : std::runtime_error(text), code_(code) {}
  const char* kind() const {
    static const char* const kKinds[] = {
        "Ok", "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException",
        "InvalidProtobuf", "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail"};
    const int known = sizeof kKinds / sizeof *kKinds;
    return kKinds[code_ >= 0 && code_ < known ? code_ : 1];
  }

 private:
  int code_;
};

class Api {
 public:
#define EDGECOMPRESS_MEMBER(place, result, name, ...) result (*name)(__VA_ARGS__) = nullptr;
  EDGECOMPRESS_ORT_FUNCTIONS(EDGECOMPRESS_MEMBER)
  EDGECOMPRESS_ORT_NEWER_FUNCTIONS(EDGECOMPRESS_MEMBER)
#undef EDGECOMPRESS_MEMBER

  void open(const std::string& file) {
    library_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library_) throw std::runtime_error(std::string("the runtime cannot be loaded: ") + dlerror());
    struct Base {
      void* const* (*get)(std::uint32_t);
      const char* (*version)();
    };
    const auto base_of = reinterpret_cast<const Base* (*)()>(dlsym(library_, "OrtGetApiBase"));
    if (!base_of) throw std::runtime_error(file + " is not onnxruntime: it has no OrtGetApiBase");
    const Base* base = base_of();
    version_ = base->version();
    const auto dot = version_.find('.');
    const unsigned minor = dot == std::string::npos ? 0 : std::atoi(version_.c_str() + dot + 1);
    const unsigned level = std::min(minor, kNewest);
    void* const* table = level < kOldest ? nullptr : base->get(level);
    if (!table)
      throw std::runtime_error("onnxruntime " + version_ + " is too old: 1.12 or newer is needed");
#define EDGECOMPRESS_BIND(place, result, name, ...) \
  name = reinterpret_cast<result (*)(__VA_ARGS__)>(table[place]);
    EDGECOMPRESS_ORT_FUNCTIONS(EDGECOMPRESS_BIND)
    if (level >= kNewest) {
      EDGECOMPRESS_ORT_NEWER_FUNCTIONS(EDGECOMPRESS_BIND)
    }
#undef EDGECOMPRESS_BIND
  }

  const std::string& version() const { return version_; }

  // A function that only builds with that provider export, such as the one for NNAPI.
  void* symbol(const std::string& name) const { return dlsym(library_, name.c_str()); }

  void check(Status* status) const {
    if (!status) return;
    const Error error(GetErrorMessage(status), GetErrorCode(status));
    ReleaseStatus(status);
    throw error;
  }

 private:
  void* library_ = nullptr;
  std::string version_;
};

}  // namespace ort
