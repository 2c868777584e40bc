// What Linux and Android tell of the machine and of this process.
#pragma once

#include <dirent.h>
#include <sched.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "json.h"

namespace device {

inline std::string text_of(const std::string& file) {
  std::ifstream in(file);
  std::stringstream all;
  all << in.rdbuf();
  std::string text = all.str();
  while (!text.empty() && (text.back() == '\n' || text.back() == '\0' || text.back() == ' '))
    text.pop_back();
  return text;
}

inline double number_of(const std::string& file, double fallback) {
  const std::string text = text_of(file);
  return text.empty() ? fallback : std::atof(text.c_str());
}

inline std::vector<std::string> entries(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> found;
  if (DIR* open = opendir(folder.c_str())) {
    while (const dirent* entry = readdir(open))
      if (!std::strncmp(entry->d_name, prefix.c_str(), prefix.size()))
        found.push_back(folder + "/" + entry->d_name);
    closedir(open);
  }
  std::sort(found.begin(), found.end());
  return found;
}

inline std::string said_by(const std::string& command) {
  std::string text;
  if (FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
    char part[256];
    while (std::fgets(part, sizeof part, pipe)) text += part;
    pclose(pipe);
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text;
}

// Values of lines such as "VmHWM:   123 kB", in megabytes (10^6 bytes), of this process.
inline double status_mb(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (!line.compare(0, key.size() + 1, key + ":"))
      return std::atof(line.c_str() + key.size() + 1) * 1024 / 1e6;
  return -1;
}

// Lets the peak start again at what is resident now, where the system can do that.
inline void forget_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

inline double seconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

inline std::string cpufreq(int cpu, const std::string& what) {
  return "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cpufreq/" + what;
}

inline std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (!sched_getaffinity(0, sizeof set, &set))
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  // The fastest cores last, and of equals the one with the greatest number.
  std::stable_sort(cpus.begin(), cpus.end(), [](int a, int b) {
    return number_of(cpufreq(a, "cpuinfo_max_freq"), 0) < number_of(cpufreq(b, "cpuinfo_max_freq"), 0);
  });
  return cpus;
}

// Stay on as many cores as there are threads: the fastest ones, the same in every process.
inline std::vector<int> pin(int threads) {
  std::vector<int> cpus = allowed_cpus();
  if (static_cast<int>(cpus.size()) > threads) cpus.erase(cpus.begin(), cpus.end() - threads);
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  if (cpus.empty() || sched_setaffinity(0, sizeof set, &set)) return {};
  std::sort(cpus.begin(), cpus.end());
  return cpus;
}

struct CpuInfo {
  std::map<std::string, std::string> first;  // of each key, what the first processor says
  std::vector<std::pair<std::string, std::string>> parts;  // implementer and part of each core
  double mhz = 0;
};

inline CpuInfo cpu_info() {
  CpuInfo info;
  std::ifstream in("/proc/cpuinfo");
  std::string implementer;
  for (std::string line; std::getline(in, line);) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string key = line.substr(0, line.find_last_not_of(" \t", colon - 1) + 1);
    std::string value = colon + 2 <= line.size() ? line.substr(colon + 2) : "";
    if (key == "CPU implementer") implementer = value;
    if (key == "CPU part") info.parts.emplace_back(implementer, value);
    if (key == "cpu MHz") info.mhz = std::max(info.mhz, std::atof(value.c_str()));
    info.first.emplace(std::move(key), std::move(value));
  }
  return info;
}

inline double hottest_c() {
  double hottest = -1;
  for (const std::string& zone : entries("/sys/class/thermal", "thermal_zone")) {
    double value = number_of(zone + "/temp", -1);
    if (value >= 1000) value /= 1000;  // the kernel's unit; some drivers give whole degrees
    if (value > 0 && value < 150) hottest = std::max(hottest, value);  // unused sensors say more
  }
  return hottest;
}

// Keeps one core busy for a moment, so that its governor raises the clock to what it can be.
inline void wake(int cpu) {
  cpu_set_t before, only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  if (sched_getaffinity(0, sizeof before, &before) || sched_setaffinity(0, sizeof only, &only))
    return;
  const double end = seconds(CLOCK_MONOTONIC) + 0.1;
  while (seconds(CLOCK_MONOTONIC) < end) {
  }
  sched_setaffinity(0, sizeof before, &before);
}

inline void add_clock(json::Object& facts, const CpuInfo& info) {
  const std::vector<int> cpus = allowed_cpus();
  const int fastest = cpus.empty() ? 0 : cpus.back();
  if (number_of(cpufreq(fastest, "scaling_cur_freq"), -1) > 0) wake(fastest);
  const double now = number_of(cpufreq(fastest, "scaling_cur_freq"), -1) / 1000;
  const double limit = number_of(cpufreq(fastest, "scaling_max_freq"), -1) / 1000;
  const double most = number_of(cpufreq(fastest, "cpuinfo_max_freq"), -1) / 1000;
  if (now > 0) facts.add("clock_mhz", now);
  else if (info.mhz > 0) facts.add("clock_mhz", info.mhz);
  if (limit > 0) facts.add("clock_limit_mhz", limit);
  if (most > 0) facts.add("clock_most_mhz", most);
}

inline void add_battery(json::Object& facts) {
  for (const std::string& supply : entries("/sys/class/power_supply", "")) {
    if (text_of(supply + "/type") != "Battery") continue;
    facts.add("battery_percent", number_of(supply + "/capacity", -1));
    facts.add("battery", text_of(supply + "/status"));
    return;
  }
}

inline std::string facts() {
  json::Object facts;
  utsname system{};
  uname(&system);
  facts.add("system", system.sysname).add("release", system.release).add("arch", system.machine);
  facts.add("host", system.nodename);
  facts.add("board", text_of("/proc/device-tree/model"));
  const CpuInfo info = cpu_info();
  const auto word = [&info](const char* key) {
    const auto found = info.first.find(key);
    return found == info.first.end() ? std::string() : found->second;
  };
  facts.add("cpu", word("model name")).add("hardware", word("Hardware"));
  facts.add("isa", word("flags").empty() ? word("Features") : word("flags"));
  facts.raw("parts", json::array(info.parts, [](const auto& part) {
              return json::quoted(part.first + " " + part.second);
            }));
  facts.add("cores", static_cast<double>(sysconf(_SC_NPROCESSORS_CONF)));
  facts.add("ram_bytes", static_cast<double>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE));
  add_clock(facts, info);
  if (const double hottest = hottest_c(); hottest > 0) facts.add("temperature_c", hottest);
  add_battery(facts);
  std::ifstream release("/etc/os-release");
  for (std::string line; std::getline(release, line);)
    if (!line.compare(0, 12, "PRETTY_NAME=")) facts.add("os_name", line.substr(12));
  facts.add("android_model", said_by("getprop ro.product.model"));
  facts.add("android_maker", said_by("getprop ro.product.manufacturer"));
  facts.add("android_version", said_by("getprop ro.build.version.release"));
  facts.add("soc", said_by("getprop ro.soc.model"));
  return facts.str();
}

}  // namespace device
