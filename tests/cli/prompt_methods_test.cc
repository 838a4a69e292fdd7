// Anchored prompts and multitask prompts as a user trains and uses them.
#include "tests/cli/command_test_util.h"

namespace permafrost {
namespace {

using nlohmann::json;

class PromptMethods : public CommandTest {
 protected:
  std::string Data() const {
    return Write("facts.csv",
                 "subject,answer,other\nthe dog,big,x\nthe cat,small,y\na girl,happy,z\n");
  }
  // Labels are the column `answer`.
  std::string Classes() const {
    return "--label-column answer --target ' {label}' --label-words big,small,happy ";
  }
  std::string Eval(const std::string& more) const {
    return "eval --json --threads 1 --base " + Quoted(Stories()) + " --data " + Quoted(Data()) +
           " --adapter " + Quoted(Path("out")) + " " + more;
  }
};

TEST_F(PromptMethods, AnAnchoredPromptRemembersItsTemplate) {
  const std::string input = "{v*3} {subject} {v*3} is {v*2}";
  for (const std::string method : {"prompt", "ptuning --encoder lstm --encoder-width 8"}) {
    SCOPED_TRACE(method);
    Output(Train(Stories(), Data(),
                 "--threads 1 --steps 40 --lr 0.05 --input '" + input + "' " + Classes() +
                     "--method " + method));
    const json config = json::parse(Read("out/adapter_config.json"));
    EXPECT_EQ(config["peft_type"], "PERMAFROST_ANCHORED_PROMPT");
    EXPECT_EQ(config["input_template"], input);
    EXPECT_EQ(config["num_virtual_tokens"], 8);

    const json own = Json(Eval(Classes()));
    EXPECT_EQ(own["examples"], 3);
    // Three lines are learnt by heart, which the bare base does not know.
    EXPECT_LT(own["loss"].get<double>(), 1.5);
    EXPECT_EQ(Json(Eval(Classes() + "--input '" + input + "'")), own);
    // The same tokens by another way of saying it; another place is another loss.
    EXPECT_EQ(Json(Eval(Classes() + "--input '{v*1}{v*2} {subject}{v*3} is{v*2}'")), own);
    EXPECT_NE(Json(Eval(Classes() + "--input '{v*8} {subject} is'"))["loss"], own["loss"]);

    const std::vector<json> lines =
        JsonLines(Output("predict --threads 1 --base " + Quoted(Stories()) + " --data " +
                         Quoted(Data()) + " --adapter " + Quoted(Path("out")) + " " + Classes()));
    ASSERT_EQ(lines.size(), 3u);
    EXPECT_EQ(lines[0]["scores"].size(), 3u);

    const std::string generate = "generate --threads 1 --json --max-new-tokens 4 --base " +
                                 Quoted(Stories()) + " --adapter " + Quoted(Path("out"));
    EXPECT_EQ(Json(generate + " --prompt 'the dog'"),
              Json(generate + " --prompt '{v*3} the dog {v*3} is {v*2}'"));
    ExpectBad(generate + " --prompt '{v*3} the dog'", {"expected 8 virtual tokens", "found 3"});
    ExpectBad(generate + " --prompt '{v*8} {x}'", {"found x"});
    ExpectBad(generate + " --prompt x --task-id 1", {"--task-id", "found 1"});
    ExpectBad(Eval(Classes() + "--input '{subject} is'"), {"--input", "8 virtual tokens"});
    ExpectBad(Eval(Classes() + "--input '{v*2} {subject}'"), {"expected 8", "found 2"});
    const std::string shots = Write("shots.csv", "subject,answer\nthe bird,small\n");
    ExpectBad(Eval(Classes() + "--shots 1 --shots-data " + shots), {"--shots", input}, 2);
    ExpectBad(Eval("--objective lm"), {"--objective lm", "virtual tokens", input}, 2);

    Output("neighbors --top 1 --base " + Quoted(Stories()) + " --adapter " + Quoted(Path("out")) +
           " --discretise " + Quoted(Path("pieces")));
    EXPECT_EQ(json::parse(Read("pieces/adapter_config.json"))["input_template"], input);
  }
}

TEST_F(PromptMethods, BadTemplates) {
  const auto bad = [&](const std::string& more, const std::vector<std::string>& parts) {
    ExpectBad(Train(Stories(), Data(), "--steps 1 " + Classes() + more), parts);
  };
  bad("--method prompt --input '{v*0} {subject}'", {"{v*N}"});
  bad("--method prompt --input '{v*3} {nothing}'", {"'nothing'"});
  bad("--method prompt --virtual-tokens 4 --input '{v*3} {subject}'",
      {"--virtual-tokens 3", "found 4"});
  bad("--method lora --input '{v*3} {subject}'", {"prompt or ptuning", "found lora"});
  ExpectBad(Train(Stories(), Data(),
                  "--steps 1 --method prompt --objective lm --input '{v*3} {subject}'"),
            {"--objective lm", "virtual tokens"}, 2);
  ExpectBad("eval --base " + Quoted(Stories()) + " --data " + Quoted(Data()) + " " + Classes() +
                "--input '{v*3} {subject}'",
            {"virtual tokens", "found none"});
}

TEST_F(PromptMethods, VirtualTokensInPretokenizedLines) {
  const std::string base = GoldenModel("llama-1");
  Output(Train(base, Write("d.jsonl", "{\"input_ids\": [5, 6], \"labels\": [5, 6]}\n"),
               "--method prompt --virtual-tokens 2 --init random --steps 1"));
  json config = json::parse(Read("out/adapter_config.json"));
  config["peft_type"] = "PERMAFROST_ANCHORED_PROMPT";
  config["input_template"] = "{v*2} {x}";
  for (const char* field : {"prompt_tuning_init", "prompt_tuning_init_text"}) config.erase(field);
  Write("out/adapter_config.json", config.dump());
  const std::string adapter = "--adapter " + Quoted(Path("out"));
  const std::string good =
      Write("v.jsonl", "{\"input_ids\": [-1, 5, -1, 6], \"labels\": [-100, 5, -100, 6]}\n");
  Output(Forward(base, good, adapter));
  ExpectBad(Forward(base, good), {":1:", "input_ids[0]"});
  ExpectBad(
      Forward(base, Write("w.jsonl", "{\"input_ids\": [-1, 5], \"labels\": [-100, 5]}\n"), adapter),
      {":1:", "expected 2 virtual tokens", "found 1"});
  ExpectBad(
      Forward(base, Write("w.jsonl", "{\"input_ids\": [-2, 5], \"labels\": [-100, 5]}\n"), adapter),
      {":1:", "input_ids[0]"});
  config["input_template"] = "{v*3} {x}";
  Write("out/adapter_config.json", config.dump());
  ExpectBad(Forward(base, good, adapter), {"input_template", "2 virtual tokens", "found 3"});
}

TEST_F(PromptMethods, MultitaskPromptsFollowTheTaskOfTheLine) {
  const std::string base = GoldenModel("llama-1");
  const std::string lines =
      "{\"input_ids\": [5, 6], \"labels\": [5, 6], \"task_id\": 0}\n"
      "{\"input_ids\": [5, 6], \"labels\": [5, 6], \"task_id\": 1}\n"
      "{\"input_ids\": [5, 6], \"labels\": [5, 6], \"task_id\": 0}\n";
  Output(
      Train(base, Write("d.jsonl", lines),
            "--method multitask-prompt --num-tasks 2 --num-ranks 3 --virtual-tokens 4 --steps 3"));
  const json config = json::parse(Read("out/adapter_config.json"));
  EXPECT_EQ(config["peft_type"], "MULTITASK_PROMPT_TUNING");
  EXPECT_EQ(config["num_tasks"], 2);
  EXPECT_EQ(config["num_ranks"], 3);
  EXPECT_EQ(config["num_virtual_tokens"], 4);
  const std::string adapter = "--adapter " + Quoted(Path("out"));
  Output(Forward(base, Path("d.jsonl"), adapter));
  const auto forward = [&](const std::string& line) {
    return Forward(base, Write("bad.jsonl", line), adapter);
  };
  ExpectBad(forward("{\"input_ids\": [5], \"labels\": [5], \"task_id\": 2}\n"),
            {":1:", "task_id from 0 to 1", "found 2"});
  ExpectBad(forward("{\"input_ids\": [5], \"labels\": [5]}\n"), {":1:", "task_id from 0 to 1"});
  ExpectBad(Train(base, Path("d.jsonl"), "--method multitask-prompt --steps 1"), {"--num-tasks"},
            2);
  // A hostile count is refused before anything is allocated.
  json large = config;
  large["num_tasks"] = int64_t{1} << 30;
  Write("out/adapter_config.json", large.dump());
  ExpectBad(Forward(base, Path("d.jsonl"), adapter), {"num_tasks"});
}

TEST_F(PromptMethods, MultitaskPromptsOfATable) {
  const std::string data = Write("t.csv", "text,answer,kind\nthe dog,big,0\nthe dog,small,1\n");
  const std::string flags =
      "--input '{text} is' --label-column answer --target ' {label}' --label-words big,small "
      "--task-column kind ";
  Output(Train(Stories(), data,
               "--threads 1 --method multitask-prompt --num-tasks 2 --num-ranks 4 "
               "--virtual-tokens 4 --steps 60 --lr 0.1 " +
                   flags));
  // The same text, two answers: only the task tells them apart.
  const std::string predict = "predict --threads 1 --base " + Quoted(Stories()) + " --data " +
                              Quoted(data) + " --adapter " + Quoted(Path("out")) + " ";
  const std::vector<json> lines = JsonLines(Output(predict + flags));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["label"], "big");
  EXPECT_EQ(lines[1]["label"], "small");
  ExpectBad(predict + "--input '{text} is' --label-column answer --label-words big,small",
            {":2:", "task_id"});

  const auto mixture = [&](const std::string& more) {
    return "train --quiet --threads 1 --base " + Quoted(Stories()) + " --out " +
           Quoted(Path("mixed")) + " --method multitask-prompt --num-tasks 2 --steps 1 --mixture " +
           Write("m.json", "[{\"data\": \"t.csv\", \"input\": \"{text} {answer}\", " + more +
                               "\"objective\": \"lm\"}]");
  };
  Output(mixture("\"task_column\": \"kind\", "));
  ExpectBad(mixture(""), {":2:", "task_id"});
}

// Each text trains the prompt of its own task.
TEST_F(PromptMethods, MultitaskPromptsOfRunningText) {
  const auto losses = [&](const std::string& kind) {
    Output(Train(Stories(),
                 Write("t.csv", "text,task_id\nOnce upon a time,1\nthe dog was," + kind + "\n"),
                 "--threads 1 --method multitask-prompt --num-tasks 2 --virtual-tokens 4 "
                 "--steps 3 --lr 0.5 --objective lm --order file --batch-size 1"));
    std::vector<double> list;
    for (const json& step : JsonLines(Read("out/metrics.jsonl"))) list.push_back(step["loss"]);
    return list;
  };
  const std::vector<double> other = losses("0"), same = losses("1");
  ASSERT_EQ(other.size(), 3u);
  EXPECT_EQ(other[0], same[0]);
  EXPECT_NE(other[1], same[1]);
  ExpectBad(Train(Stories(), Write("t.csv", "text,task_id\nthe dog,2\n"),
                  "--method multitask-prompt --num-tasks 2 --steps 1 --objective lm"),
            {":2:", "task_id from 0 to 1", "found 2"});
}

}  // namespace
}  // namespace permafrost
