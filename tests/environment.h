// Environment variables for the time of a test; those of launchers and OpenMP that are not named are unset.
#pragma once
#include <cstdlib>
#include <map>
#include <string>

namespace tapernorm {

struct Environment {
    static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_SIZE",
                                             "OMPI_COMM_WORLD_RANK",
                                             "OMPI_COMM_WORLD_LOCAL_RANK",
                                             "OMPI_COMM_WORLD_LOCAL_SIZE",
                                             "RANK",
                                             "WORLD_SIZE",
                                             "LOCAL_RANK",
                                             "LOCAL_WORLD_SIZE",
                                             "MASTER_ADDR",
                                             "MASTER_PORT",
                                             "OMP_NUM_THREADS",
                                             "OMP_PROC_BIND",
                                             "OMP_THREAD_LIMIT",
                                             "ATTENTION",
                                             "TAPERNORM_ISA",
                                             "TAPERNORM_SECRET",
                                             "TAPERNORM_SECRET_FILE",
                                             "TORCHELASTIC_RUN_ID",
                                             "SLURM_PROCID",
                                             "SLURM_STEP_NUM_TASKS",
                                             "SLURM_LOCALID",
                                             "SLURM_STEP_NODELIST",
                                             "SLURM_STEP_TASKS_PER_NODE",
                                             "SLURM_JOB_ID",
                                             "SLURM_STEP_ID",
                                             "SLURM_NTASKS",
                                             "PMIX_RANK",
                                             "PMI_SIZE"};
    std::map<std::string, std::string> before;

    explicit Environment(const std::map<std::string, std::string>& values) {
        for (const char* name : kNames) {
            if (const char* value = std::getenv(name)) before[name] = value;
            unsetenv(name);
        }
        for (const auto& [name, value] : values) setenv(name.c_str(), value.c_str(), 1);
    }
    ~Environment() {
        for (const char* name : kNames) unsetenv(name);
        for (const auto& [name, value] : before) setenv(name.c_str(), value.c_str(), 1);
    }
};

}  // namespace tapernorm
