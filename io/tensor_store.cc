#include "io/tensor_store.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "io/bytes.h"
#include "io/file.h"
#include "io/json.h"
#include "nlohmann/json.hpp"

namespace permafrost {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kHashChunkBytes = 64;
constexpr size_t kHashChunks = 32;

absl::Status Error(const std::string& source, std::string_view message) {
  return absl::InvalidArgumentError(absl::StrCat(source, ": ", std::string(message)));
}

absl::Status PickleError(const std::string& path) {
  return Error(path,
               "pickled PyTorch checkpoints can run code and are refused; convert it in Python: "
               "safetensors.torch.save_file(torch.load(path, weights_only=True), "
               "'model.safetensors')");
}

bool IsPickleName(const std::string& path) {
  for (const char* suffix : {".bin", ".pt", ".pth", ".pkl", ".ckpt"}) {
    if (absl::EndsWith(path, suffix)) return true;
  }
  return false;
}

// A shard must be a file of the same folder, under its plain name.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of("/\\") == std::string::npos && !HasControlCharacter(name);
}

bool BeginsWithGgufMagic(const std::string& path) {
  absl::StatusOr<MappedFile> file = MappedFile::Open(path);
  return file.ok() && file->bytes().size() >= 4 &&
         std::memcmp(file->bytes().data(), "GGUF", 4) == 0;
}

uint64_t HashText(std::string_view text, uint64_t seed) {
  const uint64_t size = text.size();
  return Fingerprint(text.data(), text.size(), Fingerprint(&size, sizeof(size), seed));
}

// All bytes of a small tensor; evenly spaced chunks, the first and last included, of a large one.
uint64_t HashSamples(absl::Span<const std::byte> bytes, uint64_t seed) {
  const uint64_t size = bytes.size();
  seed = Fingerprint(&size, sizeof(size), seed);
  if (bytes.size() <= kHashChunkBytes * kHashChunks) {
    return Fingerprint(bytes.data(), bytes.size(), seed);
  }
  const size_t last = bytes.size() - kHashChunkBytes;
  for (size_t i = 0; i < kHashChunks; ++i) {
    // last / (n - 1) * i without overflow and with the last chunk at the very end
    const size_t begin = i + 1 == kHashChunks ? last : last / (kHashChunks - 1) * i;
    seed = Fingerprint(bytes.data() + begin, kHashChunkBytes, seed);
  }
  return seed;
}

uint64_t HashTensor(std::string_view name, std::string_view dtype, absl::Span<const int64_t> shape,
                    absl::Span<const std::byte> bytes, uint64_t seed) {
  seed = HashText(dtype, HashText(name, seed));
  const uint64_t rank = shape.size();
  seed = Fingerprint(&rank, sizeof(rank), seed);
  seed = Fingerprint(shape.data(), shape.size() * sizeof(int64_t), seed);
  return HashSamples(bytes, seed);
}

}  // namespace

absl::StatusOr<TensorStore> TensorStore::Open(const std::string& path) {
  TensorStore store;
  store.source_ = path;
  if (FolderExists(path)) {
    const std::string single = absl::StrCat(path, "/", kSingleFile);
    const std::string index = absl::StrCat(path, "/", kIndexFile);
    if (FileExists(single)) {
      absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(single);
      if (!file.ok()) return file.status();
      store.TakeFile(*std::move(file));
      return store;
    }
    if (FileExists(index)) {
      if (absl::Status s = store.OpenShards(index); !s.ok()) return s;
      return store;
    }
    for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      const std::string file = absl::StrCat(path, "/", pickle);
      if (FileExists(file)) return PickleError(file);
    }
    return absl::NotFoundError(absl::StrCat("folder '", path, "': expected ", kSingleFile, " or ",
                                            kIndexFile, ", found neither"));
  }
  if (absl::EndsWith(path, ".gguf") || BeginsWithGgufMagic(path)) {
    absl::StatusOr<GgufFile> file = GgufFile::Open(path);
    if (!file.ok()) return file.status();
    store.TakeGguf(*std::move(file));
    return store;
  }
  if (IsPickleName(path) && FileExists(path)) return PickleError(path);
  if (absl::EndsWith(path, ".index.json")) {
    if (absl::Status s = store.OpenShards(path); !s.ok()) return s;
    return store;
  }
  absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  store.TakeFile(*std::move(file));
  return store;
}

void TensorStore::TakeFile(SafetensorsFile file) {
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    names_.push_back(file.tensors()[i].name);
    places_.push_back({0, i});
  }
  files_.push_back(std::move(file));
}

void TensorStore::TakeGguf(GgufFile file) {
  for (size_t i = 0; i < file.tensors().size(); ++i) {
    names_.push_back(file.tensors()[i].name);
    places_.push_back({0, i});
  }
  gguf_ = std::move(file);
}

absl::Status TensorStore::OpenShards(const std::string& index_path) {
  absl::StatusOr<nlohmann::json> index = ReadJsonFile(index_path);
  if (!index.ok()) return index.status();
  const nlohmann::json* map = JsonFields(*index, index_path).Find("weight_map");
  if (map == nullptr || !map->is_object()) {
    return Error(index_path, absl::StrCat("field \"weight_map\": expected an object, found ",
                                          map == nullptr ? "nothing" : DescribeJson(*map)));
  }
  const size_t slash = index_path.find_last_of('/');
  const std::string folder = slash == std::string::npos ? "" : index_path.substr(0, slash + 1);
  std::map<std::string, size_t> shards;  // file name -> position in files_
  for (const auto& [name, value] : map->items()) {
    if (!value.is_string() || !IsPlainFileName(value.get_ref<const std::string&>())) {
      return Error(index_path,
                   absl::StrCat("weight_map: tensor '", name,
                                "': expected a plain file name, found ", DescribeJson(value)));
    }
    const std::string& file_name = value.get_ref<const std::string&>();
    if (shards.contains(file_name)) continue;
    absl::StatusOr<SafetensorsFile> file = SafetensorsFile::Open(folder + file_name);
    if (!file.ok()) return file.status();
    shards.emplace(file_name, files_.size());
    files_.push_back(*std::move(file));
  }
  // Every mapped name is in its shard ...
  for (const auto& [name, value] : map->items()) {  // sorted, since JSON objects are
    const size_t shard = shards.at(value.get_ref<const std::string&>());
    const TensorView* tensor = files_[shard].Find(name);
    if (tensor == nullptr) {
      return Error(index_path, absl::StrCat("weight_map: tensor '", name, "' is not in ",
                                            files_[shard].source()));
    }
    names_.push_back(name);
    places_.push_back({shard, static_cast<size_t>(tensor - files_[shard].tensors().data())});
  }
  // ... and every tensor of a shard is mapped to it, so that none is in two shards.
  for (size_t shard = 0; shard < files_.size(); ++shard) {
    for (const TensorView& tensor : files_[shard].tensors()) {
      const Place* place = FindPlace(tensor.name);
      if (place == nullptr || place->shard != shard) {
        return Error(files_[shard].source(),
                     absl::StrCat("tensor '", tensor.name, "' is ",
                                  place == nullptr ? "not in the weight_map of "
                                                   : "in another shard according to ",
                                  index_path));
      }
    }
  }
  return absl::OkStatus();
}

const TensorStore::Place* TensorStore::FindPlace(std::string_view name) const {
  const auto found = std::lower_bound(names_.begin(), names_.end(), name);
  if (found == names_.end() || *found != name) return nullptr;
  return &places_[static_cast<size_t>(found - names_.begin())];
}

std::optional<TensorInfo> TensorStore::Find(std::string_view name) const {
  const Place* place = FindPlace(name);
  if (place == nullptr) return std::nullopt;
  if (gguf_.has_value()) {
    const GgufTensor& tensor = gguf_->tensors()[place->index];
    return TensorInfo{tensor.shape, tensor.type->name};
  }
  const TensorView& tensor = files_[place->shard].tensors()[place->index];
  return TensorInfo{tensor.shape, FileDTypeName(tensor.dtype)};
}

absl::Status TensorStore::ReadF32(std::string_view name, int64_t first_element,
                                  absl::Span<float> out) const {
  const Place* place = FindPlace(name);
  if (place == nullptr) {
    return absl::NotFoundError(absl::StrCat(source_, ": no tensor '", std::string(name), "'"));
  }
  const absl::Status status =
      gguf_.has_value()
          ? ReadAsF32(gguf_->tensors()[place->index], first_element, out)
          : ReadAsF32(files_[place->shard].tensors()[place->index], first_element, out);
  if (status.ok()) return status;
  return absl::Status(
      status.code(), absl::StrCat(gguf_.has_value() ? source_ : files_[place->shard].source(), ": ",
                                  status.message()));
}

void TensorStore::DropPages() const {
  for (const SafetensorsFile& file : files_) file.DropPages();
  if (gguf_.has_value()) gguf_->DropPages();
}

uint64_t TensorStore::bytes_hash() const {
  uint64_t hash = kFingerprintSeed;
  for (size_t i = 0; i < names_.size(); ++i) {
    if (gguf_.has_value()) {
      const GgufTensor& tensor = gguf_->tensors()[places_[i].index];
      hash = HashTensor(tensor.name, tensor.type->name, tensor.shape, tensor.bytes, hash);
    } else {
      const TensorView& tensor = files_[places_[i].shard].tensors()[places_[i].index];
      hash = HashTensor(tensor.name, FileDTypeName(tensor.dtype), tensor.shape, tensor.bytes, hash);
    }
  }
  return hash;
}

}  // namespace permafrost
