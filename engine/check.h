// Checked aborts for programmer errors: PERMAFROST_CHECK(cond) << "MatMul: inner sizes differ, " <<
// ...; What a user can cause (files, flags, data) is absl::Status instead.
#ifndef PERMAFROST_ENGINE_CHECK_H_
#define PERMAFROST_ENGINE_CHECK_H_

#include <sstream>

#include "absl/status/status.h"

namespace permafrost {

// Collects a message and aborts with file and line when destroyed.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  template <class T>
  CheckFailure& operator<<(const T& value) {
    message_ << value;
    return *this;
  }

 private:
  std::ostringstream message_;
};

}  // namespace permafrost

#define PERMAFROST_CHECK(condition) \
  if (condition) {                  \
  } else                            \
    ::permafrost::CheckFailure(__FILE__, __LINE__, #condition)

// Returns the status from the enclosing function if it is an error.
#define PERMAFROST_RETURN_IF_ERROR(expression)                              \
  do {                                                                      \
    if (absl::Status status_ = (expression); !status_.ok()) return status_; \
  } while (false)

#define PERMAFROST_CONCAT_INNER(a, b) a##b
#define PERMAFROST_CONCAT(a, b) PERMAFROST_CONCAT_INNER(a, b)

// PERMAFROST_ASSIGN_OR_RETURN(auto x, F()): x is the value of a StatusOr, or its status is
// returned.
#define PERMAFROST_ASSIGN_OR_RETURN(declaration, expression)   \
  auto PERMAFROST_CONCAT(status_or_, __LINE__) = (expression); \
  if (!PERMAFROST_CONCAT(status_or_, __LINE__).ok()) {         \
    return PERMAFROST_CONCAT(status_or_, __LINE__).status();   \
  }                                                            \
  declaration = std::move(PERMAFROST_CONCAT(status_or_, __LINE__)).value()

#endif  // PERMAFROST_ENGINE_CHECK_H_
