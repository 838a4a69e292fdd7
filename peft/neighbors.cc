#include "peft/neighbors.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/types.h"

namespace permafrost {
namespace {

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

struct BestOfToken {
  double norm = 0;
  Best cosine, euclidean;
};

}  // namespace

std::vector<TokenNeighbors> FindNeighbors(Context& c, const Model& model, const Tensor& prompt,
                                          int top) {
  std::vector<BestOfToken> best;
  for (int64_t p = 0; p < prompt.rows(); ++p) {
    const Products self = Compare(prompt.row(p), prompt.row(p), prompt.columns());
    best.push_back({std::sqrt(self.square_b), Best(top, true), Best(top, false)});
  }
  constexpr int64_t kChunk = 1024;  // rows unpacked at a time
  const int64_t vocabulary = model.embedding().outputs();
  for (int64_t first = 0; first < vocabulary; first += kChunk) {
    std::vector<int32_t> ids(static_cast<size_t>(std::min(kChunk, vocabulary - first)));
    std::iota(ids.begin(), ids.end(), static_cast<int32_t>(first));
    const Tensor rows = model.embedding().Rows(c, ids);
    kernels::ParallelFor(c.parallel(), prompt.rows(), [&](int64_t p, int) {
      BestOfToken& token = best[static_cast<size_t>(p)];
      for (size_t i = 0; i < ids.size(); ++i) {
        const Products v =
            Compare(prompt.row(p), rows.row(static_cast<int64_t>(i)), prompt.columns());
        const double norms = token.norm * std::sqrt(v.square_b);
        token.cosine.Offer(norms > 0 ? v.dot / norms : 0, ids[i]);
        token.euclidean.Offer(std::sqrt(v.square_distance), ids[i]);
      }
    });
  }
  std::vector<TokenNeighbors> result;
  result.reserve(best.size());
  for (const BestOfToken& token : best) {
    result.push_back({token.norm, token.cosine.entries(), token.euclidean.entries()});
  }
  return result;
}

std::vector<int32_t> NearestIds(const std::vector<TokenNeighbors>& tokens, Nearness nearness) {
  std::vector<int32_t> ids;
  for (const TokenNeighbors& token : tokens) {
    const auto& list = nearness == Nearness::kCosine ? token.cosine : token.euclidean;
    ids.push_back(list.front().id);
  }
  return ids;
}

}  // namespace permafrost
