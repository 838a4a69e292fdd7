// The SIMD level, kept in Highway's own dispatch state plus one flag for AVX512-BF16.
#include "kernels/simd.h"

#include <cstdio>
#include <cstdlib>

#include "kernels/cpu/simd_state.h"
#include "kernels/cpu/targets.h"
// Needs the target set.
#include "hwy/highway.h"

namespace permafrost::kernels::cpu {
namespace {

struct Level {
  std::string name;
  int64_t target;  // Highway's bit; lower is better
  bool avx512bf16;
};

std::string LevelName(int64_t target) {
  if (target == HWY_AVX3) return "avx512";
  std::string name = hwy::TargetName(target);
  for (char& c : name) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return name;
}

bool CpuHasAvx512Bf16() {
#if HWY_ARCH_X86_64
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

std::vector<Level> DetectLevels() {
  std::vector<Level> levels;
  // The fallback (lowest) target is always there, even if the Highway library was built without it.
  const int64_t fallback = HWY_TARGETS & (HWY_EMU128 | HWY_SCALAR);
  int64_t left = (hwy::SupportedTargets() & HWY_TARGETS) | fallback;
  for (; left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    if (target == HWY_AVX3 && CpuHasAvx512Bf16()) levels.push_back({"avx512bf16", target, true});
    levels.push_back({LevelName(target), target, false});
  }
  return levels;
}

const std::vector<Level>& Levels() {
  static const std::vector<Level>* const levels = new std::vector<Level>(DetectLevels());
  return *levels;
}

const Level* g_level = nullptr;

void Apply(const Level& level) {
  // The level's target and all worse ones; dispatch takes the best of them that a file has.
  int64_t targets = 0;
  for (const Level& other : Levels()) {
    if (other.target >= level.target) targets |= other.target;
  }
  hwy::GetChosenTarget().Update(targets);
  g_level = &level;
}

bool InitOnce() {
  Apply(Levels().front());
  const char* const wanted = std::getenv("PERMAFROST_SIMD");
  if (wanted == nullptr || *wanted == '\0' || SetSimdLevel(wanted)) return true;
  std::fprintf(stderr, "PERMAFROST_SIMD: unknown or unsupported level '%s'; this CPU has:", wanted);
  for (const Level& level : Levels()) std::fprintf(stderr, " %s", level.name.c_str());
  std::fprintf(stderr, "\n");
  std::exit(2);
}

}  // namespace

bool InitSimdLevel() {
  static const bool done = InitOnce();
  return done;
}

std::vector<std::string> AvailableSimdLevels() {
  std::vector<std::string> names;
  for (const Level& level : Levels()) names.push_back(level.name);
  return names;
}

bool SetSimdLevel(const std::string& name) {
  for (const Level& level : Levels()) {
    if (level.name == name) {
      Apply(level);
      return true;
    }
  }
  return false;
}

std::string CurrentSimdLevel() {
  InitSimdLevel();
  return g_level->name;
}

bool UseAvx512Bf16() {
  InitSimdLevel();
  return g_level->avx512bf16;
}

}  // namespace permafrost::kernels::cpu
