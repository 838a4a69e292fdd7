#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "io/bytes.h"
#include "io/json.h"
#include "io/json_sax.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

constexpr char kMetadataKey[] = "__metadata__";
constexpr size_t kLengthBytes = 8;

struct DTypeInfo {
  std::string_view name;
  int bits;
};

constexpr std::array<DTypeInfo, 22> kDTypes = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};

absl::Status Error(std::string_view source, std::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(source), ": ", std::string(message)));
}

std::string Quoted(std::string_view name) {
  constexpr size_t kMaxLength = 200;
  return absl::StrCat("tensor '", absl::Utf8SafeCHexEscape(std::string(name.substr(0, kMaxLength))),
                      "'");
}

// One tensor as the header describes it.
struct HeaderEntry {
  std::string name;
  std::optional<FileDType> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::vector<int64_t> offsets;  // begin and end, once the header is read
  bool has_offsets = false;
};

// Takes the header apart while it is parsed, without a value tree: a 100 MB header of millions of
// aliased entries must cost no memory before it is refused.
class HeaderReader {
 public:
  explicit HeaderReader(const SafetensorsLimits& limits) : limits_(limits) {}

  bool Null() { return Scalar("null"); }
  bool Bool(bool) { return Scalar("a truth value"); }
  bool Int(int64_t) { return Scalar("a negative number"); }
  bool Float(double) { return Scalar("a number that is not a whole number"); }

  bool Uint(uint64_t value) {
    std::vector<int64_t>* list = List();
    if (depth_ != 3 || list == nullptr) return Scalar("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Fail(absl::StrCat(Where(), "overflow: ", value, " does not fit"));
    }
    if (list->size() == (field_ == Field::kShape ? limits_.max_rank : 2)) {
      return Fail(absl::StrCat(Where(), "more than ", list->size(), " numbers"));
    }
    list->push_back(static_cast<int64_t>(value));
    return true;
  }

  bool String(std::string& value) {
    if (depth_ == 2 && in_metadata_) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (depth_ != 2 || field_ != Field::kDType) return Scalar("a string");
    entries.back().dtype = FileDTypeFromName(value);
    if (!entries.back().dtype.has_value()) {
      return Fail(absl::StrCat(Where(), "unknown type '", value.substr(0, 40), "'"));
    }
    return true;
  }

  bool StartObject() {
    if (depth_ == 2 && (in_metadata_ || field_ != Field::kOther)) return Scalar("an object");
    if (depth_ > 2 && field_ != Field::kOther) return Scalar("an object");
    ++depth_;
    field_ = Field::kOther;
    return true;
  }

  bool EndObject() {
    if (--depth_ == 1 && !in_metadata_) {
      const HeaderEntry& entry = entries.back();
      const char* missing = !entry.dtype.has_value()   ? "dtype"
                            : !entry.shape.has_value() ? "shape"
                            : !entry.has_offsets       ? "data_offsets"
                                                       : nullptr;
      if (missing != nullptr) {
        return Fail(absl::StrCat(Quoted(entry.name), ": field ", missing, " is missing"));
      }
      if (entry.offsets.size() != 2) {
        return Fail(absl::StrCat(Quoted(entry.name), ": data_offsets: expected 2 numbers, found ",
                                 entry.offsets.size()));
      }
    }
    return true;
  }

  bool StartArray() {
    if (depth_ == 0) return Scalar("an array");
    if (depth_ == 1 || (depth_ == 2 && (in_metadata_ || field_ == Field::kDType))) {
      return Scalar("an array");
    }
    if (depth_ > 2 && field_ != Field::kOther) return Scalar("an array");
    if (depth_ == 2 && field_ == Field::kShape) entries.back().shape.emplace();
    if (depth_ == 2 && field_ == Field::kOffsets) entries.back().has_offsets = true;
    ++depth_;
    return true;
  }

  bool EndArray() {
    --depth_;
    return true;
  }

  bool Key(std::string& key) {
    if (depth_ == 1) {
      in_metadata_ = key == kMetadataKey;
      if (in_metadata_) return true;
      if (entries.size() == limits_.max_tensors) {
        return Fail(absl::StrCat("more than ", limits_.max_tensors, " tensors"));
      }
      if (HasControlCharacter(key)) {
        return Fail(absl::StrCat(Quoted(key), ": control character in the name"));
      }
      entries.push_back({.name = std::move(key), .dtype = {}, .shape = {}, .offsets = {}});
    } else if (depth_ == 2 && in_metadata_) {
      key_ = std::move(key);
    } else if (depth_ == 2) {
      field_ = key == "dtype"          ? Field::kDType
               : key == "shape"        ? Field::kShape
               : key == "data_offsets" ? Field::kOffsets
                                       : Field::kOther;
    }
    return true;
  }

  std::vector<HeaderEntry> entries;
  std::map<std::string, std::string> metadata;
  std::string error;

 private:
  enum class Field { kOther, kDType, kShape, kOffsets };

  bool Fail(std::string message) {
    error = std::move(message);
    return false;
  }

  std::string Where() const {
    if (depth_ == 0) return "header: ";
    if (in_metadata_) return absl::StrCat(kMetadataKey, ": ");
    if (entries.empty()) return "header: ";
    const char* field = field_ == Field::kDType     ? "dtype: "
                        : field_ == Field::kShape   ? "shape: "
                        : field_ == Field::kOffsets ? "data_offsets: "
                                                    : "";
    return absl::StrCat(Quoted(entries.back().name), ": ", field);
  }

  std::vector<int64_t>* List() {
    if (in_metadata_ || entries.empty()) return nullptr;
    if (field_ == Field::kShape) return &*entries.back().shape;
    if (field_ == Field::kOffsets) return &entries.back().offsets;
    return nullptr;
  }

  // A value of a kind that its place does not take, unless nobody reads that place.
  bool Scalar(std::string_view found) {
    if (depth_ >= 2 && !in_metadata_ && field_ == Field::kOther) return true;
    const char* expected = depth_ <= 1               ? "an object"
                           : in_metadata_            ? "a string"
                           : field_ == Field::kDType ? "a string"
                           : depth_ == 2             ? "an array"
                                                     : "a whole number";
    return Fail(absl::StrCat(Where(), "expected ", expected, ", found ", std::string(found)));
  }

  const SafetensorsLimits& limits_;
  size_t depth_ = 0;  // open objects and arrays
  bool in_metadata_ = false;
  Field field_ = Field::kOther;
  std::string key_;  // of __metadata__
};

// Bytes of a tensor from type and shape, with the reference's overflow and alignment rules.
absl::StatusOr<int64_t> ExpectedBytes(FileDType dtype, absl::Span<const int64_t> shape,
                                      std::string_view where) {
  const std::optional<int64_t> count = ElementCount(shape);
  const std::optional<int64_t> bits =
      count.has_value() ? CheckedMultiply(*count, FileDTypeBits(dtype)) : std::nullopt;
  if (!bits.has_value()) {
    return Error(where, absl::StrCat("overflow: shape ", ShapeText(shape), " is too large"));
  }
  if (*bits % 8 != 0) {
    return Error(where, absl::StrCat("misaligned: ", *count, " elements of ", FileDTypeBits(dtype),
                                     " bits do not fill whole bytes"));
  }
  return *bits / 8;
}

bool NameLess(const TensorView& tensor, std::string_view name) { return tensor.name < name; }

template <typename Source, typename Convert>
void ConvertElements(const std::byte* bytes, absl::Span<float> out, Convert convert) {
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = convert(LoadLittleEndian<Source>(bytes + i * sizeof(Source)));
  }
}

}  // namespace

std::string_view FileDTypeName(FileDType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

std::optional<FileDType> FileDTypeFromName(std::string_view name) {
  for (size_t i = 0; i < kDTypes.size(); ++i) {
    if (kDTypes[i].name == name) return static_cast<FileDType>(i);
  }
  return std::nullopt;
}

int FileDTypeBits(FileDType dtype) { return kDTypes[static_cast<size_t>(dtype)].bits; }

int64_t TensorView::num_elements() const { return ElementCount(shape).value_or(0); }

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path,
                                                      const SafetensorsLimits& limits) {
  absl::StatusOr<MappedFile> mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  absl::StatusOr<SafetensorsFile> file = Parse(mapped->bytes(), path, limits);
  if (file.ok()) file->file_ = *std::move(mapped);
  return file;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Parse(absl::Span<const std::byte> bytes,
                                                       std::string source,
                                                       const SafetensorsLimits& limits) {
  if (bytes.size() < kLengthBytes) {
    return Error(source, absl::StrCat("too small for a safetensors file: ", bytes.size(),
                                      " bytes, expected at least 8"));
  }
  const uint64_t header_bytes = LoadLittleEndian<uint64_t>(bytes.data());
  if (header_bytes > static_cast<uint64_t>(limits.max_header_bytes)) {
    return Error(
        source, absl::StrCat("header too large: ", header_bytes, " bytes, at most ",
                             limits.max_header_bytes, " are allowed; is this a safetensors file?"));
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    return Error(source, absl::StrCat("invalid header length: ", header_bytes,
                                      " bytes, but the file has only ", bytes.size() - kLengthBytes,
                                      " left; is it cut off?"));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes,
                                header_bytes);
  HeaderReader reader(limits);
  if (absl::Status s = ParseJsonEvents(header, source, reader); !s.ok()) return s;

  std::vector<HeaderEntry>& entries = reader.entries;
  std::sort(entries.begin(), entries.end(), [](const HeaderEntry& a, const HeaderEntry& b) {
    return a.offsets != b.offsets ? a.offsets < b.offsets : a.name < b.name;
  });
  const absl::Span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  SafetensorsFile file;
  file.tensors_.reserve(entries.size());
  int64_t position = 0;
  for (HeaderEntry& entry : entries) {
    const int64_t begin = entry.offsets[0], end = entry.offsets[1];
    const std::string where = absl::StrCat(source, ": ", Quoted(entry.name));
    if (begin != position || end < begin) {
      return Error(where, absl::StrCat("invalid offsets [", begin, ", ", end, "]: expected begin ",
                                       position, " (no holes, no overlaps) and end not before it"));
    }
    if (static_cast<uint64_t>(end) > data.size()) {
      return Error(where, absl::StrCat("incomplete file: data_offsets end at ", end,
                                       ", but there are only ", data.size(), " bytes of data"));
    }
    absl::StatusOr<int64_t> expected = ExpectedBytes(*entry.dtype, *entry.shape, where);
    if (!expected.ok()) return expected.status();
    if (end - begin != *expected) {
      return Error(where, absl::StrCat("invalid size: ", std::string(FileDTypeName(*entry.dtype)),
                                       " ", ShapeText(*entry.shape), " takes ", *expected,
                                       " bytes, data_offsets give ", end - begin));
    }
    file.tensors_.push_back(
        {.name = std::move(entry.name),
         .dtype = *entry.dtype,
         .shape = *std::move(entry.shape),
         .bytes = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin))});
    position = end;
  }
  if (static_cast<uint64_t>(position) != data.size()) {
    return Error(source, absl::StrCat("incomplete description: the header covers ", position,
                                      " bytes of data, the file has ", data.size()));
  }
  std::sort(file.tensors_.begin(), file.tensors_.end(),
            [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
  file.metadata_ = std::move(reader.metadata);
  file.source_ = std::move(source);
  return file;
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name, NameLess);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::Status ReadAsF32(const TensorView& tensor, int64_t first_element, absl::Span<float> out) {
  const int64_t count = tensor.num_elements();
  const int64_t wanted = static_cast<int64_t>(out.size());
  if (first_element < 0 || first_element > count || wanted > count - first_element) {
    return absl::OutOfRangeError(absl::StrCat(Quoted(tensor.name), ": elements ", first_element,
                                              " to ", first_element, " + ", wanted,
                                              " are outside of its ", count));
  }
  const size_t element_bytes = static_cast<size_t>(FileDTypeBits(tensor.dtype)) / 8;
  const std::byte* bytes = tensor.bytes.data() + static_cast<size_t>(first_element) * element_bytes;
  switch (tensor.dtype) {
    case FileDType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes, out.size() * sizeof(float));
      return absl::OkStatus();
    case FileDType::kF64:
      ConvertElements<double>(bytes, out, [](double x) { return static_cast<float>(x); });
      return absl::OkStatus();
    case FileDType::kF16:
      ConvertElements<uint16_t>(bytes, out, HalfToFloat);
      return absl::OkStatus();
    case FileDType::kBF16:
      ConvertElements<uint16_t>(bytes, out, Bfloat16ToFloat);
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat(Quoted(tensor.name), ": expected type F64, F32, F16 or BF16, found ",
                       std::string(FileDTypeName(tensor.dtype))));
  }
}

TensorView F32View(std::string name, std::vector<int64_t> shape, absl::Span<const float> values) {
  return {.name = std::move(name),
          .dtype = FileDType::kF32,
          .shape = std::move(shape),
          .bytes = {reinterpret_cast<const std::byte*>(values.data()), values.size() * 4}};
}

absl::Status WriteSafetensors(const std::string& path, absl::Span<const TensorView> tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorView*> order;
  for (const TensorView& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return a->dtype != b->dtype ? a->dtype > b->dtype : a->name < b->name;
  });

  std::map<std::string, std::string> all_metadata = metadata;
  all_metadata.emplace("format", "pt");
  std::string header =
      absl::StrCat("{\"", kMetadataKey, "\":", DumpJson(nlohmann::json(all_metadata)));
  absl::flat_hash_set<std::string> names;
  int64_t position = 0;
  for (const TensorView* tensor : order) {
    const std::string where = absl::StrCat(path, ": ", Quoted(tensor->name));
    if (tensor->name.empty() || tensor->name == kMetadataKey || HasControlCharacter(tensor->name)) {
      return Error(where, "empty, reserved or unprintable name");
    }
    if (!names.insert(tensor->name).second) return Error(where, "written twice");
    absl::StatusOr<int64_t> expected = ExpectedBytes(tensor->dtype, tensor->shape, where);
    if (!expected.ok()) return expected.status();
    const int64_t size = static_cast<int64_t>(tensor->bytes.size());
    if (size != *expected) {
      return Error(where, absl::StrCat("shape ", ShapeText(tensor->shape), " takes ", *expected,
                                       " bytes, ", size, " are given"));
    }
    absl::StrAppend(&header, ",", DumpJson(tensor->name), ":{\"dtype\":\"",
                    std::string(FileDTypeName(tensor->dtype)),
                    "\",\"shape\":", DumpJson(tensor->shape), ",\"data_offsets\":[", position, ",",
                    position + size, "]}");
    position += size;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');

  absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
  if (!file.ok()) return file.status();
  const uint64_t header_bytes = header.size();
  char length[kLengthBytes];
  std::memcpy(length, &header_bytes, kLengthBytes);
  if (absl::Status s = file->Append(std::string_view(length, kLengthBytes)); !s.ok()) return s;
  if (absl::Status s = file->Append(header); !s.ok()) return s;
  for (const TensorView* tensor : order) {
    if (absl::Status s = file->Append(tensor->bytes); !s.ok()) return s;
  }
  return file->Commit();
}

}  // namespace permafrost
