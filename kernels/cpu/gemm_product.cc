#include "kernels/cpu/gemm_product.h"

#include <algorithm>

#include "kernels/cpu/gemm_pack.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/cpu/simd_state.h"

namespace permafrost::kernels::cpu {
namespace {

// Sizes fit a core with 32-48 KiB of L1 and 1 MiB of L2; measured insensitive by a few percent.
constexpr int64_t kDepthF32 = 768;
constexpr int64_t kDepthBF16 = 1024;
constexpr int64_t kRowBytes = 512 << 10;  // of a in one block of rows: half of L2
constexpr int64_t kMaxBlockRows = 512;
constexpr int64_t kSharedBytes = 8 << 20;  // of b packed on the fly for all workers: stays in L3
constexpr int64_t kLine = 64;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// Depth of a block: a function of the depth alone, so that sums are always cut at the same places.
int64_t DepthBlock(const Product& p) {
  const int64_t limit = p.bf16 ? kDepthBF16 : kDepthF32;
  const int64_t blocks = std::max<int64_t>(1, CeilDiv(p.depth, limit));
  return std::max<int64_t>(2, RoundUp(CeilDiv(p.depth, blocks), 2));
}

int64_t Panels(const Product& p) { return CeilDiv(p.cols, kTileColumns); }
// Bytes of `depth` steps of a packed panel.
int64_t PanelBytes(const Product& p, int64_t depth) {
  return (p.bf16 ? CeilDiv(depth, 2) : depth) * kTileColumns * 4;
}
bool InPlace(const Product& p, int64_t panel) {
  return p.b != nullptr && (p.b_padded || (panel + 1) * kTileColumns <= p.cols);
}
bool CopiesA(const Product& p) { return p.bf16 || p.transpose_a; }

// Depth of b, in whole blocks, that is packed at once for all workers.
int64_t SharedDepth(const Product& p) {
  const int64_t block = DepthBlock(p);
  const int64_t fits = std::max<int64_t>(1, kSharedBytes / (Panels(p) * PanelBytes(p, block)));
  return std::min(std::max<int64_t>(1, CeilDiv(p.depth, block)), fits) * block;
}

// How one call is cut.
struct Plan {
  int64_t depth_block;
  int64_t a_stride;  // elements of a copied row; never a multiple of 4 KiB
  int64_t block_rows;
  int64_t row_blocks;
  int64_t panel_groups;  // > 1 only with few rows
  int64_t shared_depth;  // depth of b packed at once for all workers; 0: each packs for itself
  int64_t worker_bytes;
};

Plan MakePlan(const Product& p, int64_t workers, int64_t a_size) {
  Plan plan;
  plan.depth_block = DepthBlock(p);
  plan.a_stride = plan.depth_block + kLine / a_size;
  const int64_t fit = kRowBytes / (plan.a_stride * a_size) / 8 * 8;
  const int64_t most = std::clamp<int64_t>(fit, 8, kMaxBlockRows);
  // Equal blocks, a multiple of the workers if there are rows enough.
  plan.row_blocks = CeilDiv(p.rows, most);
  if (p.rows >= 32 * workers) plan.row_blocks = RoundUp(plan.row_blocks, workers);
  plan.block_rows = RoundUp(CeilDiv(p.rows, plan.row_blocks), 8);
  plan.row_blocks = CeilDiv(p.rows, plan.block_rows);
  plan.panel_groups = std::min(Panels(p), CeilDiv(workers, plan.row_blocks));
  plan.shared_depth = 0;
  const int64_t a_bytes =
      CopiesA(p) ? RoundUp(std::min(p.rows, plan.block_rows) * plan.a_stride * a_size, kLine) : 0;
  plan.worker_bytes = a_bytes;
  if (p.pack == nullptr) return plan;
  if (plan.row_blocks == 1 || p.b != nullptr) {
    plan.worker_bytes += PanelBytes(p, plan.depth_block);
  } else {
    plan.shared_depth = SharedDepth(p);
  }
  return plan;
}

struct Run {
  const Product& p;
  const Plan plan;
  TileFunction tiles;
  bool dot;
  char* shared;
  char* private_memory;
};

// The block of a as the tiles read it.
void CopyA(const Run& run, int64_t row, int64_t rows, int64_t depth, int64_t count, void* to) {
  const Product& p = run.p;
  const int64_t stride = run.plan.a_stride;
  if (p.transpose_a) {
    TransposeWords(p.a + depth * p.a_stride + row, p.a_stride, count, rows, to, stride);
  } else if (run.dot) {
    for (int64_t r = 0; r < rows; ++r) {
      RoundRowAvx512Bf16(p.a + (row + r) * p.a_stride + depth, count,
                         static_cast<uint16_t*>(to) + r * stride);
    }
  } else {
    RoundRowsToF32(p.a + row * p.a_stride + depth, p.a_stride, rows, count, static_cast<float*>(to),
                   stride);
  }
}

// Rows of one block times panels of one group, over depth [begin, end).
void RunBlock(const Run& run, int64_t block, int64_t group, int worker, int64_t begin,
              int64_t end) {
  const Product& p = run.p;
  const Plan& plan = run.plan;
  const int64_t row = block * plan.block_rows;
  const int64_t panels = Panels(p);
  const int64_t first = panels * group / plan.panel_groups;
  const int64_t last = panels * (group + 1) / plan.panel_groups;
  char* const a_copy = run.private_memory + worker * plan.worker_bytes;
  char* const b_copy = a_copy + plan.worker_bytes - PanelBytes(p, plan.depth_block);

  TileArgs tile;
  tile.rows = std::min(plan.block_rows, p.rows - row);
  tile.c_stride = p.c_stride;
  tile.transpose_c = p.transpose_c;
  tile.alpha = p.alpha;
  int64_t depth = begin;
  do {  // once even if the depth is 0: the sum is then zero
    const int64_t count = std::min(plan.depth_block, end - depth);
    tile.depth = p.bf16 ? CeilDiv(count, 2) : count;
    if (CopiesA(p)) {
      CopyA(run, row, tile.rows, depth, count, a_copy);
      tile.a = a_copy;
      tile.a_stride = plan.a_stride;
    } else {
      tile.a = p.a + row * p.a_stride + depth;
      tile.a_stride = p.a_stride;
    }
    tile.accumulate = depth > 0 || p.write == Write::kAccumulate;
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t col = panel * kTileColumns;
      tile.cols = std::min<int64_t>(kTileColumns, p.cols - col);
      tile.c = p.c + (p.transpose_c ? col * p.c_stride + row : row * p.c_stride + col);
      tile.bias = p.bias != nullptr && depth == 0 ? p.bias + col : nullptr;
      tile.b_stride = kTileColumns;
      if (InPlace(p, panel)) {
        tile.b = static_cast<const char*>(p.b) + panel * p.panel_bytes +
                 (p.bf16 ? depth / 2 : depth) * p.b_stride * 4;
        tile.b_stride = p.b_stride;
      } else if (plan.shared_depth > 0) {
        tile.b =
            run.shared + panel * PanelBytes(p, plan.shared_depth) + PanelBytes(p, depth - begin);
      } else {
        p.pack(p.pack_context, panel, depth, depth + count, b_copy);
        tile.b = b_copy;
      }
      run.tiles(tile);
    }
    depth += count;
  } while (depth < end);
}

}  // namespace

int64_t ProductWorkspace(const Product& product, int workers) {
  const Product& p = product;
  if (p.rows <= 0 || p.cols <= 0) return 0;
  const int64_t depth = DepthBlock(p);
  int64_t worker_bytes = 0, shared = 0;
  if (CopiesA(p)) {
    const int64_t row = (depth + kLine / 4) * 4;  // the widest element
    worker_bytes +=
        RoundUp(std::min(std::max(kRowBytes, 8 * row), RoundUp(p.rows, 8) * row), kLine);
  }
  if (p.pack != nullptr) {
    worker_bytes += PanelBytes(p, depth);
    if (p.b == nullptr) shared = Panels(p) * PanelBytes(p, SharedDepth(p));
  }
  return std::max(1, workers) * worker_bytes + shared;
}

void RunProduct(const Product& product, void* workspace, const Parallel& parallel) {
  const Product& p = product;
  if (p.rows <= 0 || p.cols <= 0) return;
  const int64_t workers = std::max(1, parallel.workers);
  const bool dot = p.bf16 && UseAvx512Bf16();
  const Plan plan = MakePlan(p, workers, dot ? 2 : 4);
  Run run{p,
          plan,
          dot ? TilesBf16Dot : (p.bf16 ? TilesBf16Fma : TilesF32),
          dot,
          static_cast<char*>(workspace) + workers * plan.worker_bytes,
          static_cast<char*>(workspace)};
  const int64_t step = plan.shared_depth > 0 ? plan.shared_depth : std::max<int64_t>(1, p.depth);
  int64_t begin = 0;
  do {
    const int64_t end = std::min(p.depth, begin + step);
    if (plan.shared_depth > 0) {
      ParallelFor(parallel, Panels(p), [&](int64_t panel, int) {
        p.pack(p.pack_context, panel, begin, end,
               run.shared + panel * PanelBytes(p, plan.shared_depth));
      });
    }
    ParallelFor(parallel, plan.row_blocks * plan.panel_groups, [&](int64_t i, int worker) {
      RunBlock(run, i / plan.panel_groups, i % plan.panel_groups, worker, begin, end);
    });
    begin = end;
  } while (begin < p.depth);
}

}  // namespace permafrost::kernels::cpu
