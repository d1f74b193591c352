#include "worker.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>

#include "text.hpp"

extern char** environ;

namespace bench {

namespace {

// A whole line without its end; false at the end of the stream.
bool read_line(std::FILE* stream, std::string* line) {
    line->clear();
    for (int c = std::fgetc(stream); c != EOF; c = std::fgetc(stream)) {
        if (c == '\n') return true;
        line->push_back(static_cast<char>(c));
    }
    return false;
}

std::string one_line(std::string text) {
    for (char& c : text) {
        if (c == '\n') c = ' ';
    }
    return text;
}

}  // namespace

Worker::Worker(const std::string& isa, const Options& options) : options_(options), isa_(isa) {
    std::signal(SIGPIPE, SIG_IGN);  // a worker that died is an error message, not the end of this process
    int down[2], up[2];
    if (pipe2(down, O_CLOEXEC) != 0) throw std::runtime_error("worker: no pipe");
    if (pipe2(up, O_CLOEXEC) != 0) {
        close(down[0]);
        close(down[1]);
        throw std::runtime_error("worker: no pipe");
    }
    std::vector<std::string> variables;
    for (char** variable = environ; *variable; ++variable) {
        if (std::strncmp(*variable, "FASTFFN_ISA=", 12) != 0) variables.push_back(*variable);
    }
    variables.push_back("FASTFFN_ISA=" + isa);
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    std::string program = "fastffn-bench", option = "--worker";
    char* arguments[] = {program.data(), option.data(), nullptr};

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, down[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, up[1], STDOUT_FILENO);
    pid_t child = 0;
    const int failed = posix_spawn(&child, "/proc/self/exe", &actions, nullptr, arguments, environment.data());
    posix_spawn_file_actions_destroy(&actions);
    close(down[0]);
    close(up[1]);
    to_ = fdopen(down[1], "w");
    from_ = fdopen(up[0], "r");
    if (failed) throw std::runtime_error(std::string("worker: cannot start: ") + std::strerror(failed));
    process_ = child;
}

Worker::~Worker() {
    if (to_) std::fclose(to_);  // the end of its input ends the worker
    if (from_) std::fclose(from_);
    if (process_ > 0) waitpid(process_, nullptr, 0);
}

std::string Worker::ask(const std::string& line, const std::string& expected_word) {
    std::string answer;
    if (std::fprintf(to_, "%s\n", line.c_str()) < 0 || std::fflush(to_) != 0 || !read_line(from_, &answer)) {
        throw std::runtime_error("worker with FASTFFN_ISA=" + isa_ + " died");
    }
    const std::size_t space = answer.find(' ');
    const std::string word = answer.substr(0, space), rest = space == std::string::npos ? "" : answer.substr(space + 1);
    if (word != expected_word)
        throw std::runtime_error(word == "error" ? rest : "worker: unexpected answer: " + answer);
    return rest;
}

Prepared Worker::prepare(const Problem& problem) {
    std::istringstream answer(ask("problem " + to_arguments(problem, options_), "ready"));
    Prepared prepared;
    answer >> prepared.kernel >> prepared.weight_bytes >> prepared.stack_bytes >> prepared.workspace_bytes;
    if (prepared.kernel == "-") prepared.kernel.clear();
    return prepared;
}

std::vector<double> Worker::burst(double seconds) {
    std::istringstream answer(ask("burst " + std::to_string(seconds), "times"));
    std::vector<double> samples;
    for (double sample; answer >> sample;) samples.push_back(sample);
    if (samples.empty()) throw std::runtime_error("worker: no times in its answer");
    return samples;
}

int serve() {
    std::unique_ptr<Runner> runner;
    std::string line;
    while (read_line(stdin, &line)) {
        try {
            const std::size_t space = line.find(' ');
            if (space == std::string::npos) throw std::runtime_error("worker: cannot read '" + line + "'");
            const std::string word = line.substr(0, space), rest = line.substr(space + 1);
            if (word == "problem") {
                const Options options = parse_options(split(rest, ' '));
                if (!runner) runner = std::make_unique<Runner>(options);
                const Prepared prepared = runner->prepare(expand(options).at(0));
                std::printf("ready %s %lld %lld %lld\n", prepared.kernel.empty() ? "-" : prepared.kernel.c_str(),
                            static_cast<long long>(prepared.weight_bytes), static_cast<long long>(prepared.stack_bytes),
                            static_cast<long long>(prepared.workspace_bytes));
            } else if (word == "burst" && runner) {
                std::string times;
                for (double sample : runner->burst(std::strtod(rest.c_str(), nullptr))) {
                    char text[32];
                    std::snprintf(text, sizeof text, " %.9g", sample);
                    times += text;
                }
                std::printf("times%s\n", times.c_str());
            } else {
                throw std::runtime_error("worker: cannot read '" + line + "'");
            }
        } catch (const std::exception& problem) {
            std::printf("error %s\n", one_line(problem.what()).c_str());
        }
        std::fflush(stdout);
    }
    return 0;
}

}  // namespace bench
