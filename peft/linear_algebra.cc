#include "peft/linear_algebra.h"

#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>

#include "engine/check.h"

namespace permafrost {
namespace {

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::MatrixXd ToMatrix(const Tensor& t) {
  return Eigen::Map<const RowMajor>(t.f32(), t.rows(), t.columns()).cast<double>();
}

Tensor ToTensor(const Eigen::MatrixXd& m) {
  const Tensor t({m.rows(), m.cols()});
  Eigen::Map<RowMajor>(t.f32(), m.rows(), m.cols()) = m.cast<float>();
  return t;
}

}  // namespace

Svd TruncatedSvd(const Tensor& w, int64_t rank) {
  PERMAFROST_CHECK(rank >= 1 && w.count() > 0)
      << "TruncatedSvd: rank " << rank << " of " << ToString(w.shape());
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(ToMatrix(w), Eigen::ComputeThinU | Eigen::ComputeThinV);
  const Eigen::VectorXd& values = svd.singularValues();
  const int64_t r = std::min<int64_t>(rank, values.size());
  return {.u = ToTensor(svd.matrixU().leftCols(r)),
          .s = ToTensor(values.head(r).transpose()),
          .v = ToTensor(svd.matrixV().leftCols(r)),
          .residual = values.tail(values.size() - r).norm(),
          .norm = values.norm()};
}

Qr QrDecomposition(const Tensor& w) {
  const Eigen::MatrixXd m = ToMatrix(w);
  const int64_t k = std::min(w.rows(), w.columns());
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(m);
  const Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(w.rows(), k);
  const Eigen::MatrixXd r = qr.matrixQR().topRows(k).triangularView<Eigen::Upper>();
  return {.q = ToTensor(q), .r = ToTensor(r)};
}

}  // namespace permafrost
