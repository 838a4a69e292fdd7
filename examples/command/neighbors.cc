// permafrost neighbors: the vocabulary pieces next to each virtual token of a soft prompt, and how
// they cluster (Lester et al. 2021, section 7: learned tokens have semantically close neighbours,
// and several tokens share them).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "command.h"
#include "engine/check.h"
#include "io/json.h"
#include "kernels/types.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

struct NeighborsFlags {
  BaseFlags base;
  std::string adapter;
  int top = 5;
  bool json = false;
};

struct Neighbor {
  double value = 0;
  int32_t id = -1;
};

// The best entries of a stream; among equal values the first one counts.
class Best {
 public:
  Best(int size, bool largest) : size_(static_cast<size_t>(size)), largest_(largest) {}
  void Offer(double value, int32_t id) {
    if (entries_.size() == size_ && !Before(value, entries_.back().value)) return;
    const auto at = std::find_if(entries_.begin(), entries_.end(),
                                 [&](const Neighbor& n) { return Before(value, n.value); });
    entries_.insert(at, {value, id});
    if (entries_.size() > size_) entries_.pop_back();
  }
  const std::vector<Neighbor>& entries() const { return entries_; }

 private:
  bool Before(double a, double b) const { return largest_ ? a > b : a < b; }

  size_t size_;
  bool largest_;
  std::vector<Neighbor> entries_;
};

struct TokenNeighbors {
  double norm = 0;
  Best cosine, euclidean;
};

struct Products {
  double dot = 0, square_distance = 0, square_b = 0;
};

// Sums over eight lanes, which the compiler keeps in vector registers. The distance is summed from
// differences: from the norms it would drown in rounding for a prompt that starts as vocabulary.
Products Compare(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 8;
  float dot[kLanes] = {}, distance[kLanes] = {}, square[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      const float x = a[i + l], y = b[i + l];
      dot[l] += x * y;
      distance[l] += (x - y) * (x - y);
      square[l] += y * y;
    }
  }
  Products p;
  for (int64_t l = 0; l < kLanes; ++l) {
    p.dot += dot[l];
    p.square_distance += distance[l];
    p.square_b += square[l];
  }
  for (int64_t i = whole; i < n; ++i) {
    p.dot += static_cast<double>(a[i]) * b[i];
    p.square_distance += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    p.square_b += static_cast<double>(b[i]) * b[i];
  }
  return p;
}

// prompt [P, D] against all V rows of the embedding, unpacked in chunks.
std::vector<TokenNeighbors> FindNeighbors(Context& c, const Model& model, const Tensor& prompt,
                                          int top) {
  std::vector<TokenNeighbors> result;
  for (int64_t p = 0; p < prompt.rows(); ++p) {
    const Products self = Compare(prompt.row(p), prompt.row(p), prompt.columns());
    result.push_back({std::sqrt(self.square_b), Best(top, true), Best(top, false)});
  }
  constexpr int64_t kChunk = 1024;
  const int64_t vocabulary = model.embedding().outputs();
  for (int64_t first = 0; first < vocabulary; first += kChunk) {
    std::vector<int32_t> ids(static_cast<size_t>(std::min(kChunk, vocabulary - first)));
    std::iota(ids.begin(), ids.end(), static_cast<int32_t>(first));
    const Tensor rows = model.embedding().Rows(c, ids);
    kernels::ParallelFor(c.parallel(), prompt.rows(), [&](int64_t p, int) {
      TokenNeighbors& token = result[static_cast<size_t>(p)];
      for (size_t i = 0; i < ids.size(); ++i) {
        const Products v =
            Compare(prompt.row(p), rows.row(static_cast<int64_t>(i)), prompt.columns());
        const double norms = token.norm * std::sqrt(v.square_b);
        token.cosine.Offer(norms > 0 ? v.dot / norms : 0, ids[i]);
        token.euclidean.Offer(std::sqrt(v.square_distance), ids[i]);
      }
    });
  }
  return result;
}

// Which virtual tokens have the same nearest piece.
struct Clusters {
  std::map<int32_t, std::vector<int>> tokens;  // by piece
  double mean = 0;                             // of the nearest pieces' cosine or distance

  Clusters(const std::vector<TokenNeighbors>& all, Best TokenNeighbors::*metric) {
    for (size_t p = 0; p < all.size(); ++p) {
      const Neighbor& nearest = (all[p].*metric).entries().front();
      tokens[nearest.id].push_back(static_cast<int>(p));
      mean += nearest.value / static_cast<double>(all.size());
    }
  }
};

class Names {
 public:
  explicit Names(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  // "" for a row of the embedding without a piece.
  std::string Piece(int32_t id) const { return tokenizer_ == nullptr ? "" : tokenizer_->Piece(id); }
  std::string Text(int32_t id) const {
    const std::string piece = Piece(id);
    return piece.empty() ? absl::StrCat("#", id) : absl::StrCat(DumpJson(piece), " #", id);
  }

 private:
  const Tokenizer* tokenizer_;
};

// Left-aligned in `width` characters of UTF-8.
std::string Padded(const std::string& text, size_t width) {
  const auto characters = static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char ch) {
    return (static_cast<unsigned char>(ch) & 0xC0) != 0x80;
  }));
  return characters < width ? text + std::string(width - characters, ' ') : text;
}

void PrintClusters(const char* title, const char* mean, const Clusters& clusters, size_t tokens,
                   const Names& names) {
  std::printf("%s: %zu distinct nearest pieces of %zu virtual tokens, mean %s %.4f\n", title,
              clusters.tokens.size(), tokens, mean, clusters.mean);
  for (const auto& [id, members] : clusters.tokens) {
    if (members.size() < 2) continue;
    std::printf("  %s virtual tokens %s\n", Padded(names.Text(id), 26).c_str(),
                absl::StrJoin(members, ", ").c_str());
  }
}

void PrintText(const std::vector<TokenNeighbors>& all, const Clusters& cosine,
               const Clusters& euclidean, const Names& names) {
  constexpr size_t kWidth = 26;
  std::printf("token  rank  %s  cosine  %s  distance\n", Padded("by cosine", kWidth).c_str(),
              Padded("by distance", kWidth).c_str());
  for (size_t p = 0; p < all.size(); ++p) {
    for (size_t r = 0; r < all[p].cosine.entries().size(); ++r) {
      const Neighbor &near = all[p].cosine.entries()[r], &close = all[p].euclidean.entries()[r];
      std::printf("%5zu  %4zu  %s  %6.4f  %s  %8.4f\n", p, r + 1,
                  Padded(names.Text(near.id), kWidth).c_str(), near.value,
                  Padded(names.Text(close.id), kWidth).c_str(), close.value);
    }
  }
  std::printf("\n");
  PrintClusters("by cosine", "cosine", cosine, all.size(), names);
  PrintClusters("by distance", "distance", euclidean, all.size(), names);
}

nlohmann::ordered_json NeighborsJson(const Best& best, const Names& names) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Neighbor& n : best.entries()) {
    list.push_back({{"id", n.id}, {"piece", names.Piece(n.id)}, {"value", n.value}});
  }
  return list;
}

nlohmann::ordered_json ClustersJson(const Clusters& clusters, const char* mean,
                                    const Names& names) {
  nlohmann::ordered_json shared = nlohmann::ordered_json::array();
  for (const auto& [id, members] : clusters.tokens) {
    if (members.size() < 2) continue;
    shared.push_back({{"id", id}, {"piece", names.Piece(id)}, {"tokens", members}});
  }
  return {{"distinct_nearest", clusters.tokens.size()}, {mean, clusters.mean}, {"shared", shared}};
}

absl::Status RunNeighbors(const NeighborsFlags& f) {
  PERMAFROST_ASSIGN_OR_RETURN(Session session, OpenSession(f.base));
  Context& c = *session.context;
  PERMAFROST_ASSIGN_OR_RETURN(const Adapter adapter, LoadAdapter(f.adapter, 0, c, *session.model));
  const PromptTuning* method = AsPrompt(adapter);
  if (method == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(f.adapter, ": expected a prompt adapter, found ",
                                                   MethodTitle(adapter.config),
                                                   "; only a prompt has virtual tokens"));
  }
  const Tensor prompt = method->prompt();
  const std::vector<TokenNeighbors> all = FindNeighbors(c, *session.model, prompt, f.top);
  const Clusters cosine(all, &TokenNeighbors::cosine), euclidean(all, &TokenNeighbors::euclidean);
  const Names names(session.tokenizer.get());
  if (!f.json) {
    PrintText(all, cosine, euclidean, names);
    return absl::OkStatus();
  }
  nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
  for (const TokenNeighbors& token : all) {
    tokens.push_back({{"index", tokens.size()},
                      {"norm", token.norm},
                      {"cosine", NeighborsJson(token.cosine, names)},
                      {"euclidean", NeighborsJson(token.euclidean, names)}});
  }
  const nlohmann::ordered_json object = {
      {"virtual_tokens", all.size()},
      {"tokens", std::move(tokens)},
      {"clusters",
       {{"cosine", ClustersJson(cosine, "mean_cosine", names)},
        {"euclidean", ClustersJson(euclidean, "mean_distance", names)}}}};
  std::printf("%s\n",
              object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddNeighbors(Commands& commands) {
  auto flags = std::make_shared<NeighborsFlags>();
  CLI::App* app = commands.Add("neighbors", "Vocabulary pieces nearest to each virtual token",
                               [flags] { return RunNeighbors(*flags); });
  AddBaseFlags(app, flags->base);
  app->add_option("--adapter", flags->adapter, "prompt adapter folder")->required();
  app->add_option("--top", flags->top, "pieces for each virtual token")
      ->check(Between(1, 1000))
      ->capture_default_str();
  app->add_flag("--json", flags->json, "one JSON object");
}

}  // namespace permafrost
