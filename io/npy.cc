#include "io/npy.h"

#include <cstring>
#include <optional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "io/bytes.h"
#include "io/file.h"

namespace permafrost {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxRank = 8;
constexpr size_t kAlignment = 64;  // of the data, as NumPy writes it

struct Header {
  std::optional<std::string> type;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;
};

// Reads the Python dictionary {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }: only
// strings without escapes, True, False and tuples of numbers.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  // The header, or nothing with `error` set.
  std::optional<Header> Parse() {
    Header header;
    if (!Take('{')) return Fail("expected '{'");
    while (!Take('}')) {
      const std::optional<std::string> key = String();
      if (!key.has_value() || !Take(':')) return Fail("expected a quoted key and ':'");
      bool ok = false;
      if (*key == "descr" && !header.type.has_value()) {
        ok = (header.type = String()).has_value();
      } else if (*key == "fortran_order" && !header.fortran_order.has_value()) {
        ok = (header.fortran_order = Bool()).has_value();
      } else if (*key == "shape" && !header.shape.has_value()) {
        ok = (header.shape = Tuple()).has_value();
      } else {
        return Fail("expected each of the keys descr, fortran_order and shape once");
      }
      if (!ok) return Fail(absl::StrCat("bad value of ", *key));
      if (Take(',')) continue;
      if (Take('}')) break;
      return Fail("expected ',' or '}'");
    }
    SkipSpace();
    if (!text_.empty()) return Fail("text after the dictionary");
    if (!header.type.has_value() || !header.fortran_order.has_value() ||
        !header.shape.has_value()) {
      return Fail("expected the keys descr, fortran_order and shape");
    }
    return header;
  }

  std::string error;

 private:
  std::optional<Header> Fail(std::string message) {
    error = std::move(message);
    return std::nullopt;
  }

  void SkipSpace() {
    while (!text_.empty() && (text_[0] == ' ' || text_[0] == '\n')) text_.remove_prefix(1);
  }

  bool Take(char c) {
    SkipSpace();
    if (text_.empty() || text_[0] != c) return false;
    text_.remove_prefix(1);
    return true;
  }

  bool TakeWord(std::string_view word) {
    SkipSpace();
    if (text_.substr(0, word.size()) != word) return false;
    text_.remove_prefix(word.size());
    return true;
  }

  std::optional<std::string> String() {
    const char quote = Take('\'') ? '\'' : Take('"') ? '"' : '\0';
    if (quote == '\0') return std::nullopt;
    const size_t end = text_.find(quote);
    if (end == std::string_view::npos) return std::nullopt;
    std::string value(text_.substr(0, end));
    text_.remove_prefix(end + 1);
    return value;
  }

  std::optional<bool> Bool() {
    if (TakeWord("True")) return true;
    if (TakeWord("False")) return false;
    return std::nullopt;
  }

  std::optional<int64_t> Number() {
    SkipSpace();
    std::optional<int64_t> value;
    while (!text_.empty() && text_[0] >= '0' && text_[0] <= '9') {
      value = CheckedMultiply(value.value_or(0), 10);
      if (!value.has_value() || __builtin_add_overflow(*value, text_[0] - '0', &*value)) {
        return std::nullopt;
      }
      text_.remove_prefix(1);
    }
    return value;
  }

  std::optional<std::vector<int64_t>> Tuple() {
    if (!Take('(')) return std::nullopt;
    std::vector<int64_t> values;
    while (!Take(')')) {
      const std::optional<int64_t> value = Number();
      if (!value.has_value() || values.size() == kMaxRank) return std::nullopt;
      values.push_back(*value);
      if (Take(',')) continue;
      if (Take(')')) break;
      return std::nullopt;
    }
    return values;
  }

  std::string_view text_;
};

absl::Status Error(const std::string& source, std::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(source, ": ", std::string(message)));
}

}  // namespace

absl::StatusOr<NpyArray> ReadNpy(const std::string& path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return ParseNpy(file->bytes(), path);
}

absl::StatusOr<NpyArray> ParseNpy(absl::Span<const std::byte> bytes, const std::string& source) {
  // magic, u8 major, u8 minor, u16 (version 1) or u32 (version 2) header length, header, data
  if (bytes.size() < 12 || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return Error(source, "not a .npy file: it does not begin with \\x93NUMPY and a header");
  }
  const int major = static_cast<int>(bytes[6]), minor = static_cast<int>(bytes[7]);
  if ((major != 1 && major != 2) || minor != 0) {
    return Error(source,
                 absl::StrCat(".npy version: expected 1.0 or 2.0, found ", major, ".", minor));
  }
  const size_t header_begin = major == 1 ? 10 : 12;
  const size_t header_bytes = major == 1 ? LoadLittleEndian<uint16_t>(bytes.data() + 8)
                                         : LoadLittleEndian<uint32_t>(bytes.data() + 8);
  if (header_bytes > bytes.size() - header_begin) {
    return Error(source, absl::StrCat("header claims ", header_bytes, " bytes, ",
                                      bytes.size() - header_begin, " are left"));
  }
  HeaderParser parser({reinterpret_cast<const char*>(bytes.data()) + header_begin, header_bytes});
  const std::optional<Header> header = parser.Parse();
  if (!header.has_value()) return Error(source, absl::StrCat("bad .npy header: ", parser.error));
  if (*header->type != "<f4" && *header->type != "<f8") {
    return Error(source, absl::StrCat("type: expected '<f4' or '<f8', found '",
                                      header->type->substr(0, 40), "'"));
  }
  if (*header->fortran_order && header->shape->size() > 1) {
    return Error(source, "expected C order, found Fortran order; save numpy.ascontiguousarray(x)");
  }
  const bool is_double = *header->type == "<f8";
  const std::optional<int64_t> count = ElementCount(*header->shape);
  const std::optional<int64_t> size =
      count.has_value() ? CheckedMultiply(*count, is_double ? 8 : 4) : std::nullopt;
  const absl::Span<const std::byte> data = bytes.subspan(header_begin + header_bytes);
  if (!size.has_value() || static_cast<uint64_t>(*size) != data.size()) {
    return Error(source, absl::StrCat("shape ", ShapeText(*header->shape), " of '", *header->type,
                                      "' does not match the ", data.size(), " bytes of data"));
  }
  NpyArray array;
  array.shape = *header->shape;
  array.values.resize(static_cast<size_t>(*count));
  for (size_t i = 0; i < array.values.size(); ++i) {
    array.values[i] = is_double ? static_cast<float>(LoadLittleEndian<double>(data.data() + 8 * i))
                                : LoadLittleEndian<float>(data.data() + 4 * i);
  }
  return array;
}

absl::Status WriteNpy(const std::string& path, absl::Span<const int64_t> shape,
                      absl::Span<const float> values) {
  if (ElementCount(shape) != static_cast<int64_t>(values.size())) {
    return Error(path, absl::StrCat("shape ", ShapeText(shape), " does not hold the ",
                                    values.size(), " values given"));
  }
  std::string tuple = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    absl::StrAppend(&tuple, i > 0 ? " " : "", shape[i],
                    shape.size() == 1 || i + 1 < shape.size() ? "," : "");
  }
  std::string header =
      absl::StrCat("{'descr': '<f4', 'fortran_order': False, 'shape': ", tuple, "), }");
  const size_t begin = kMagic.size() + 4;
  const size_t total = (begin + header.size() + 1 + kAlignment - 1) / kAlignment * kAlignment;
  header.resize(total - begin - 1, ' ');
  header += '\n';
  std::string prefix(kMagic);
  prefix += '\x01';
  prefix += '\0';
  prefix += static_cast<char>(header.size() & 0xff);
  prefix += static_cast<char>(header.size() >> 8);

  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
  if (!file.ok()) return file.status();
  if (absl::Status s = file->Append(prefix + header); !s.ok()) return s;
  if (absl::Status s = file->Append(std::string_view(reinterpret_cast<const char*>(values.data()),
                                                     values.size() * sizeof(float)));
      !s.ok()) {
    return s;
  }
  return file->Commit();
}

}  // namespace permafrost
