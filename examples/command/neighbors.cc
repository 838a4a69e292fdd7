// permafrost neighbors: the vocabulary pieces next to each virtual token of a soft prompt, and how
// they cluster (Lester et al. 2021, section 7: learned tokens have semantically close neighbours,
// and several tokens share them).
#include "peft/neighbors.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "command.h"
#include "engine/check.h"
#include "io/json.h"
#include "nlohmann/json.hpp"
#include "peft/adapter_file.h"

namespace permafrost {
namespace {

struct NeighborsFlags {
  BaseFlags base;
  std::string adapter;
  int top = 5;
  std::string nearness = "cosine", discretise;
  bool text = false, json = false;
};

// Which virtual tokens have the same nearest piece.
struct Clusters {
  std::map<int32_t, std::vector<int>> tokens;  // by piece
  double mean = 0;                             // of the nearest pieces' cosine or distance

  Clusters(const std::vector<TokenNeighbors>& all, std::vector<Neighbor> TokenNeighbors::*metric) {
    for (size_t p = 0; p < all.size(); ++p) {
      const Neighbor& nearest = (all[p].*metric).front();
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
    for (size_t r = 0; r < all[p].cosine.size(); ++r) {
      const Neighbor &near = all[p].cosine[r], &close = all[p].euclidean[r];
      std::printf("%5zu  %4zu  %s  %6.4f  %s  %8.4f\n", p, r + 1,
                  Padded(names.Text(near.id), kWidth).c_str(), near.value,
                  Padded(names.Text(close.id), kWidth).c_str(), close.value);
    }
  }
  std::printf("\n");
  PrintClusters("by cosine", "cosine", cosine, all.size(), names);
  PrintClusters("by distance", "distance", euclidean, all.size(), names);
}

nlohmann::ordered_json NeighborsJson(const std::vector<Neighbor>& best, const Names& names) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Neighbor& n : best) {
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

void PrintJson(const std::vector<TokenNeighbors>& all, const Clusters& cosine,
               const Clusters& euclidean, const Names& names,
               const std::optional<std::string>& text) {
  nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
  for (const TokenNeighbors& token : all) {
    tokens.push_back({{"index", tokens.size()},
                      {"norm", token.norm},
                      {"cosine", NeighborsJson(token.cosine, names)},
                      {"euclidean", NeighborsJson(token.euclidean, names)}});
  }
  nlohmann::ordered_json object = {
      {"virtual_tokens", all.size()},
      {"tokens", std::move(tokens)},
      {"clusters",
       {{"cosine", ClustersJson(cosine, "mean_cosine", names)},
        {"euclidean", ClustersJson(euclidean, "mean_distance", names)}}}};
  if (text.has_value()) object["text"] = *text;
  std::printf("%s\n",
              object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
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
  const std::vector<TokenNeighbors> all = FindNeighbors(c, *session.model, method->prompt(), f.top);
  const std::vector<int32_t> nearest =
      NearestIds(all, f.nearness == "cosine" ? Nearness::kCosine : Nearness::kEuclidean);
  std::optional<std::string> text;
  if (f.text) {
    PERMAFROST_ASSIGN_OR_RETURN(const Tokenizer* tokenizer, NeedTokenizer(session));
    text = tokenizer->Decode(nearest, /*skip_special=*/false);
  }
  if (!f.discretise.empty()) {
    const Adapter discrete =
        PromptAdapter(0, session.model->embedding().Rows(c, nearest), method->InputTemplate());
    PERMAFROST_RETURN_IF_ERROR(SaveAdapter(f.discretise, discrete, *session.model));
  }
  const Clusters cosine(all, &TokenNeighbors::cosine), euclidean(all, &TokenNeighbors::euclidean);
  const Names names(session.tokenizer.get());
  if (f.json) {
    PrintJson(all, cosine, euclidean, names, text);
  } else if (f.text) {
    std::printf("%s\n", text->c_str());
  } else {
    PrintText(all, cosine, euclidean, names);
  }
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
  app->add_option("--nearness", flags->nearness,
                  "what --text and --discretise choose pieces by: cosine or distance")
      ->check(CLI::IsMember({"cosine", "distance"}))
      ->capture_default_str();
  app->add_flag("--text", flags->text, "only the prompt as text: its nearest pieces, decoded");
  app->add_option("--discretise", flags->discretise,
                  "also write the prompt made of the nearest pieces to this adapter folder");
  app->add_flag("--json", flags->json, "one JSON object");
}

}  // namespace permafrost
